/** What is open and what is folded. A folded block mounts nothing. */

import { createContext, type ComponentChildren } from "preact";
import { useContext, useReducer } from "preact/hooks";

/** Remembers by key what was opened, also while its row is not mounted. */
export class Folds {
  private readonly open = new Set<string>();

  /** `hold` is told of an element just before it is opened or folded. */
  constructor(readonly hold: (element: Element) => void) {}

  isOpen(key: string): boolean {
    return this.open.has(key);
  }

  toggle(key: string): void {
    if (!this.open.delete(key)) this.open.add(key);
  }
}

export const FoldsContext = createContext(new Folds(() => {}));

export function Fold(props: {
  id: string;
  summary: ComponentChildren;
  class?: string;
  children: () => ComponentChildren;
}) {
  const folds = useContext(FoldsContext);
  const [, render] = useReducer((count: number) => count + 1, 0);
  const open = folds.isOpen(props.id);
  return (
    <div class={`fold ${props.class ?? ""}`}>
      <button
        type="button"
        class="summary"
        aria-expanded={open}
        onClick={(event) => {
          folds.hold(event.currentTarget);
          folds.toggle(props.id);
          render(0);
        }}
      >
        {props.summary}
      </button>
      {open && <div class="opened">{props.children()}</div>}
    </div>
  );
}
