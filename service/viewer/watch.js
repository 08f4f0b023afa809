// Follows a job by its event stream; where no stream can be had, by asking as often as the service allows.

import { ask, getJson } from "./api.js";

const OPEN = ["accepted", "running"];
const TOGETHER_MS = 150;

/** Whether a job has not ended. */
export const isOpen = (status) => OPEN.includes(status.status);

/** Watches one job at a time. */
export class Watch {
  /**
   * @param {{status: (document: object) => void, found: (features: object[]) => void,
   *   problem: (problem: Error) => void}} tell
   */
  constructor(tell) {
    this.tell = tell;
    this.job = null;
  }

  /** Follow a job from now on. */
  follow(job) {
    this.stop();
    this.job = job;
    this.last = null;
    this.features = [];
    const source = (this.source = new EventSource(`/v1/jobs/${job}/events?regions=true`));
    const on = (name, heard) =>
      source.addEventListener(name, (event) => {
        if (this.source === source) heard(JSON.parse(event.data));
      });
    on("status", (document) => this.status(document));
    on("progress", (progress) => this.last && this.status({ ...this.last, ...progress }));
    on("region.provisional", (feature) => this.found(job, feature));
    source.addEventListener("error", () => {
      if (this.source === source && source.readyState === EventSource.CLOSED) this.poll(job);
    });
  }

  /** Features come one by one, and by the hundred when a block is done: told of together. */
  found(job, feature) {
    this.features.push(feature);
    if (this.features.length > 1) return;
    setTimeout(() => {
      const features = this.features.splice(0);
      if (this.job === job && features.length) this.tell.found(features);
    }, TOGETHER_MS);
  }

  status(document) {
    this.last = document;
    if (!isOpen(document)) this.stop();
    this.tell.status(document);
  }

  async poll(job) {
    this.source = null;
    try {
      while (this.job === job) {
        const answer = await ask(`/v1/jobs/${job}`);
        const waitS = Number(answer.headers.get("retry-after")) || 2;
        const document = await answer.json();
        if (this.job !== job) return;
        this.status(document);
        await new Promise((resolve) => setTimeout(resolve, waitS * 1000));
      }
    } catch (problem) {
      if (this.job === job) this.tell.problem(problem);
    }
  }

  /** Follow nothing. */
  stop() {
    this.source?.close();
    this.source = null;
    this.job = null;
  }
}

/** The report of a finished job. */
export const readReport = (job) => getJson(`/v1/jobs/${job}/report`, { headers: { Accept: "application/json" } });
