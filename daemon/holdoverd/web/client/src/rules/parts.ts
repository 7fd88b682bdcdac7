/** How an upload is cut into parts, and which URLs to ask for next. */

/** URLs asked for at a time: few requests for a large file, and not many that expire unused. */
export const WINDOW = 64;

export interface Cut {
  size: number;
  part_size: number;
  /** An empty file is one empty part. */
  count: number;
}

/** Where part `number`, which counts from 1, begins and ends. */
export function spanOf(cut: Cut, number: number): [from: number, to: number] {
  const from = (number - 1) * cut.part_size;
  return [from, Math.min(cut.size, from + cut.part_size)];
}

/** The parts to ask URLs for when `number` needs one: it, and of those after it the unsent. */
export function windowFrom(cut: Cut, number: number, sent: ReadonlySet<number>): number[] {
  const wanted = [number];
  for (let next = number + 1; next <= cut.count && wanted.length < WINDOW; next++) if (!sent.has(next)) wanted.push(next);
  return wanted;
}

/** `type` as the daemon takes it, else undefined: browsers guess it from the name. */
export function typeOf(type: string): string | undefined {
  return /^[\w.+-]+\/[\w.+-]+$/.test(type) ? type : undefined;
}
