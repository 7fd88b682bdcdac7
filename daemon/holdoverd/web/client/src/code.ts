/**
 * Colours for code that is in view. The document stays as it is: ranges of its text are registered
 * with the browser, which paints them. A browser that cannot do so shows code in one colour.
 */

import type { Kind } from "./rules/highlight";

const supported = typeof Highlight === "function" && typeof CSS !== "undefined" && "highlights" in CSS;

/** {element in view: the ranges registered for it} */
const painted = new Map<Element, [Kind, Range][]>();
const infos = new WeakMap<Element, string>();
let observer: IntersectionObserver | null = null;

/** Colour the text of `element` whenever it is in view; `info` is what its fence says. */
export function colour(element: Element, info: string): void {
  if (!supported || info === "") return;
  infos.set(element, info);
  observer ??= new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) void paint(target);
      else {
        clear(target);
        // Told of one that has left the document, too; it does not come back.
        if (!target.isConnected) observer?.unobserve(target);
      }
    }
  });
  observer.observe(element);
}

async function paint(element: Element): Promise<void> {
  const text = element.firstChild;
  if (painted.has(element) || !(text instanceof Text) || text.nextSibling !== null) return;
  const { languageOf, marksOf } = await import("./rules/highlight");
  const name = languageOf(infos.get(element) ?? "");
  if (name === null || painted.has(element) || !element.isConnected) return;
  const ranges: [Kind, Range][] = [];
  for (const { from, to, kind } of marksOf(name, text.data)) {
    const range = new Range();
    range.setStart(text, from);
    range.setEnd(text, to);
    highlight(kind).add(range);
    ranges.push([kind, range]);
  }
  painted.set(element, ranges);
}

function clear(element: Element): void {
  for (const [kind, range] of painted.get(element) ?? []) highlight(kind).delete(range);
  painted.delete(element);
}

function highlight(kind: Kind): Highlight {
  let found = CSS.highlights.get(`code-${kind}`);
  if (found === undefined) {
    found = new Highlight();
    CSS.highlights.set(`code-${kind}`, found);
  }
  return found;
}
