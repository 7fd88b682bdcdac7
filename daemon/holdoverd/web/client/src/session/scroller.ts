/**
 * The one owner of the scroll position of a list of rows.
 *
 * Two modes. Pinned: the end stays in view, whatever grows. Otherwise the anchor stays where it is:
 * the first visible row, at its offset from the top edge. After every change `settle` restores
 * either; it runs before the browser paints, so nobody sees the difference. While a finger or its
 * momentum moves the list, nothing is written, since that would stop or jerk it; what changes above
 * has to wait for `onStill`.
 *
 * The browser's own scroll anchoring is off (`overflow-anchor: none`): two would correct each other.
 * Rows are `[data-row]` elements within `[data-page]` elements, in order.
 */

interface Anchor {
  key: string;
  /** From the top edge of the view to the top of the row. */
  top: number;
}

/** Without a scroll for so long a released list is still, where nothing else tells. */
const STILL_MS = 150;
/** The same after a drag where `scrollend` tells: a busy page hears of its momentum much later than that. */
const STILL_AT_LAST_MS = 2000;
const TELLS_END = "onscrollend" in window;

export class Scroller {
  pinned = true;
  /** A finger or its momentum moves the list. */
  moving = false;

  private anchor: Anchor | null = null;
  private slack = 0;
  private own = Number.NaN;
  private touching = false;
  /** The finger has moved since it touched the list. */
  private dragged = false;
  private timer = 0;
  private frame = 0;
  private readonly observer: ResizeObserver;

  constructor(
    private readonly view: HTMLElement,
    private readonly content: HTMLElement,
    private readonly filler: HTMLElement,
    private readonly events: {
      /** May the end that is mounted be the end of all there is? */
      endIsMounted(): boolean;
      moved(): void;
      still(): void;
    },
  ) {
    view.addEventListener("scroll", this.scrolled, { passive: true });
    view.addEventListener("scrollend", this.ended, { passive: true });
    view.addEventListener("touchstart", this.touched, { passive: true });
    view.addEventListener("touchmove", this.draggedOn, { passive: true });
    view.addEventListener("touchend", this.released, { passive: true });
    view.addEventListener("touchcancel", this.released, { passive: true });
    this.observer = new ResizeObserver(() => this.settle());
    this.observer.observe(view);
    this.observer.observe(content);
  }

  dispose(): void {
    this.stopWaiting();
    this.observer.disconnect();
    this.view.removeEventListener("scroll", this.scrolled);
    this.view.removeEventListener("scrollend", this.ended);
    this.view.removeEventListener("touchstart", this.touched);
    this.view.removeEventListener("touchmove", this.draggedOn);
    this.view.removeEventListener("touchend", this.released);
    this.view.removeEventListener("touchcancel", this.released);
  }

  /** How much is mounted beyond the view: see `rules/pages`. */
  reach(first: Element, last: Element): { above: number; below: number; height: number } {
    const view = this.view.getBoundingClientRect();
    return {
      above: view.top - first.getBoundingClientRect().top,
      below: last.getBoundingClientRect().bottom - view.bottom,
      height: view.height,
    };
  }

  /** Put the view where it belongs, after the content has changed. */
  settle(): void {
    if (this.moving) return;
    const { view } = this;
    if (this.pinned) {
      this.setSlack(0);
      this.write(view.scrollHeight - view.clientHeight);
      return;
    }
    const row = this.anchor && this.find(this.anchor.key);
    if (!row || !this.anchor) {
      this.capture();
      return;
    }
    const off = row.getBoundingClientRect().top - view.getBoundingClientRect().top - this.anchor.top;
    const target = view.scrollTop + off;
    const missing = target + view.clientHeight - view.scrollHeight;
    // Something above or around was folded and the list ends too early: blank space holds the row.
    if (missing > 0) this.setSlack(this.slack + missing);
    if (Math.abs(off) >= 0.5) this.write(target);
    if (this.slack === 0 && this.left() <= 2 && this.events.endIsMounted()) this.pinned = true;
  }

  /** How far the view is from the end. */
  private left(): number {
    const { view } = this;
    return view.scrollHeight - this.slack - view.scrollTop - view.clientHeight;
  }

  /** `element` is about to be opened or folded: it stays where it is. */
  hold(element: Element): void {
    const row = element.closest<HTMLElement>("[data-page] > [data-row]");
    if (row === null) return;
    this.pinned = false;
    this.anchorAt(row);
  }

  toEnd(): void {
    this.pinned = true;
    this.settle();
  }

  /** Bring a row to the upper part of the view; false when it is not mounted. */
  show(key: string): boolean {
    const row = this.find(key);
    if (row === null) return false;
    const { view } = this;
    this.pinned = false;
    const off = row.getBoundingClientRect().top - view.getBoundingClientRect().top;
    this.write(Math.min(view.scrollTop + off - view.clientHeight / 5, view.scrollHeight - view.clientHeight));
    this.anchorAt(row);
    return true;
  }

  /** The rows there are may be others soon: remember where we are. */
  capture(): void {
    const edge = this.view.getBoundingClientRect().top;
    for (const page of this.content.children) {
      if (!(page instanceof HTMLElement) || page.dataset.page === undefined) continue;
      if (page.getBoundingClientRect().bottom <= edge) continue;
      const row = firstBelow(page.children, edge);
      if (row instanceof HTMLElement && row.dataset.row !== undefined) {
        this.anchorAt(row);
        return;
      }
    }
    this.anchor = null;
  }

  private anchorAt(row: HTMLElement): void {
    const edge = this.view.getBoundingClientRect().top;
    this.anchor = { key: row.dataset.row ?? "", top: row.getBoundingClientRect().top - edge };
  }

  private find(key: string): HTMLElement | null {
    return this.content.querySelector<HTMLElement>(`[data-page] > [data-row="${CSS.escape(key)}"]`);
  }

  private write(target: number): void {
    if (Math.abs(target - this.view.scrollTop) >= 0.5) this.view.scrollTop = target;
    this.own = this.view.scrollTop;
  }

  private setSlack(height: number): void {
    if (height === this.slack) return;
    this.slack = height;
    this.filler.style.height = `${height}px`;
  }

  private readonly scrolled = (): void => {
    const { view } = this;
    if (Math.abs(view.scrollTop - this.own) < 1) {
      this.events.moved();
      return;
    }
    this.own = Number.NaN;
    const left = this.left();
    this.pinned = left <= 2 && this.slack === 0 && this.events.endIsMounted();
    if (this.slack > 0) this.setSlack(Math.min(this.slack, Math.max(0, -left)));
    if (!this.pinned) this.capture();
    if (this.moving) this.waitStill();
    this.events.moved();
  };

  private readonly touched = (): void => {
    this.touching = this.moving = true;
    this.dragged = false;
    this.stopWaiting();
  };

  private readonly draggedOn = (): void => {
    this.dragged = true;
  };

  private readonly released = (event: TouchEvent): void => {
    this.touching = event.touches.length > 0;
    this.waitStill();
  };

  private readonly ended = (): void => {
    if (this.moving && !this.touching) this.still();
  };

  /** `scrollend` is not everywhere, nor after a touch that moved nothing; a pause in scrolling tells as well. */
  private waitStill(): void {
    this.stopWaiting();
    if (this.touching) return;
    const pause = this.dragged && TELLS_END ? STILL_AT_LAST_MS : STILL_MS;
    this.timer = window.setTimeout(() => {
      // What it has scrolled meanwhile a busy page hears before its next frame.
      this.frame = requestAnimationFrame(() => this.still());
    }, pause);
  }

  private stopWaiting(): void {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
  }

  private still(): void {
    this.stopWaiting();
    this.moving = false;
    if (!this.pinned) this.capture();
    this.settle();
    this.events.still();
  }
}

/** The first of `rows`, which lie one below the other, whose bottom is below `edge`. */
function firstBelow(rows: HTMLCollection, edge: number): Element | null {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle]!.getBoundingClientRect().bottom > edge) high = middle;
    else low = middle + 1;
  }
  return rows[low] ?? null;
}
