// Reads arrays of a served overlay with zarrita and prints shape, type and SHA-256 of each: node FILE URL ARRAY...
import { createHash } from "node:crypto";
import * as zarr from "zarrita";

const [url, ...names] = process.argv.slice(2);
const root = zarr.root(new zarr.FetchStore(url));
const found = {};
for (const name of names) {
  const array = await zarr.open.v3(root.resolve(name), { kind: "array" });
  const { data, shape } = await zarr.get(array);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const digest = createHash("sha256").update(bytes).digest("hex");
  found[name] = `[${shape.join(", ")}] ${array.dtype} ${digest}`;
}
console.log(JSON.stringify(found));
