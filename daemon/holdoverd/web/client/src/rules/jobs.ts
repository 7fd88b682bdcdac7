/** What a job's row says, told from the job alone. */

import type { Job, JobState } from "../wire";

/** What a person may do with a job in each state. */
export const ACTIONS: Record<JobState, readonly ("cancel" | "retry")[]> = {
  ready: ["cancel"],
  running: ["cancel"],
  done: [],
  dead: ["retry"],
  cancelled: ["retry"],
};

/** Whether it will change by itself. */
export function isOpen(job: Job): boolean {
  return job.state === "ready" || job.state === "running";
}

/** How far it has come, from 0 to 1; null where that cannot be told. */
export function fraction(job: Job): number | null {
  if (job.state !== "running" || job.progress === null || !job.progress.total) return null;
  return Math.min(1, job.progress.bytes / job.progress.total);
}

/** How long it ran, or has run until `now`, in ms; null while it has not begun. */
export function ranMs(job: Job, now: number): number | null {
  if (job.started_at === null || job.state === "ready") return null;
  return Math.max(0, (job.finished_at ?? now) - job.started_at);
}
