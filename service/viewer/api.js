// The REST API, as docs/rest-api.md tells of it.

/** What the service answered when it could not do what was asked (RFC 9457). */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the service answered ${status}`);
    this.status = status;
    this.code = body.code || "";
    this.field = body.field || "";
    this.retryAfterS = body.retryAfterS || 0;
  }

  /** For a person: the field first, where there is one. */
  get shown() {
    return this.field && !this.message.includes(this.field) ? `${this.field}: ${this.message}` : this.message;
  }
}

/** A request; the response when it went well. Raises Problem, also where no service answers. */
export async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "the service does not answer; is it still running?", code: "away" });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, { ...body, retryAfterS: Number(answer.headers.get("retry-after")) || 0 });
}

/** A JSON document. */
export async function getJson(url, options) {
  return (await ask(url, options)).json();
}

/** Ask a question about a slide; its status document. */
export async function askSlide(body) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": key() };
  return (await ask("/v1/jobs", { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Dismiss a job; its status document. */
export async function dismiss(job) {
  return (await ask(`/v1/jobs/${job}`, { method: "DELETE" })).json();
}

/** `crypto.randomUUID` is there only on secure origins; loopback is one, a laboratory's plain http is not. */
function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
