/**
 * Which pages of a thread stand in the document: a run of whole pages around what is looked at. All
 * else is empty space of measured height. No DOM: lengths in CSS pixels go in, page numbers out.
 */

/** Mounted pages at most; 100 rows each. */
export const MAX_MOUNTED = 4;

export interface Span {
  first: number;
  last: number;
}

export interface View {
  /** From the top edge of the view up to the top of the first mounted page; negative inside it. */
  above: number;
  /** From the bottom edge of the view down to the bottom of the last mounted page. */
  below: number;
  /** The view's own height. */
  height: number;
}

/** What may be mounted in one frame, in the weight of rows: a page of long texts would hold up several. */
export const SLICE = 32_000;

/**
 * The first row to mount in this frame, of rows of these weights that stand there from `end` on and
 * have more above. At least one is mounted. `taken`: what else is mounted in it.
 */
export function sliced(weights: readonly number[], end: number, taken = 0): number {
  let first = end;
  for (let weight = taken; first > 0 && (weight < SLICE || first === end); ) {
    first -= 1;
    weight += weights[first] ?? 0;
  }
  return first;
}

/** How far ahead of the view a page is mounted, in heights of the view. */
const AHEAD = 1.5;
/** How far ahead of the view a page is asked for, so that it is here when it is to be mounted. */
const COMING = 4;
/** How far behind the view a page may go, in heights of the view. */
const BEHIND = 2;

/**
 * The page to add next, above or below; null when enough is there. `heights` are those of the
 * mounted pages, in order.
 *
 * With as many as may be, a page is added only where the one that has to go for it leaves more on
 * its side than there is on this: otherwise low pages in a high view would take turns for ever.
 */
export function wanted(span: Span, view: View, heights: readonly number[], lastPage: number): number | null {
  const full = span.last - span.first + 1 >= MAX_MOUNTED;
  const { above, below } = view;
  const ahead = AHEAD * view.height;
  if (above < ahead && span.first > 0 && (!full || above < below - (heights.at(-1) ?? 0))) {
    return span.first - 1;
  }
  if (below < ahead && span.last < lastPage && (!full || below < above - (heights[0] ?? 0))) {
    return span.last + 1;
  }
  return null;
}

/** The page above to ask for while there is still much to read below it; null when that is far. */
export function coming(span: Span, view: View): number | null {
  return span.first > 0 && view.above < COMING * view.height ? span.first - 1 : null;
}

/**
 * `span` with what is far away let go: a page at either end that is wholly out of reach, as long as
 * there are more than `MAX_MOUNTED`. `heights` are those of the mounted pages, in order.
 */
export function trimmed(span: Span, view: View, heights: readonly number[]): Span {
  let { first, last } = span;
  let { above, below } = view;
  const left = [...heights];
  while (last - first + 1 > MAX_MOUNTED - 1) {
    const up = above - (left[0] ?? 0);
    const down = below - (left.at(-1) ?? 0);
    const far = BEHIND * view.height;
    const over = last - first + 1 > MAX_MOUNTED;
    if ((up > far || over) && up >= down) {
      above = up;
      left.shift();
      first += 1;
    } else if (down > far || over) {
      below = down;
      left.pop();
      last -= 1;
    } else break;
  }
  return { first, last };
}

/** The height of pages `from` to `to` (exclusive) that were measured before; unknown ones have none. */
export function spacer(heights: ReadonlyMap<number, number>, from: number, to: number): number {
  let sum = 0;
  for (let page = from; page < to; page += 1) sum += heights.get(page) ?? 0;
  return sum;
}
