import { useEffect, useReducer, useRef, useState } from "preact/hooks";

/** Something that tells when it has changed. */
export class Notifier {
  private readonly listeners = new Set<() => void>();

  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  protected changed(): void {
    for (const listener of [...this.listeners]) listener();
  }
}

/** Render anew when `source` changes, at most once a frame. */
export function useChanges(source: Notifier): void {
  const [, render] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    let frame = 0;
    const stop = source.listen(() => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        render(0);
      });
    });
    render(0);
    return () => {
      stop();
      cancelAnimationFrame(frame);
    };
  }, [source]);
}

/** The last value of `load`, asked for again every `everyMs` while the page is looked at. */
export function usePolled<T>(load: () => Promise<T>, everyMs: number, key: string): { value: T | null; error: unknown; again: () => void } {
  const [state, setState] = useState<{ value: T | null; error: unknown }>({ value: null, error: null });
  const current = useRef(load);
  current.current = load;
  const [asked, ask] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    let stopped = false;
    let timer = 0;
    const look = async (): Promise<void> => {
      try {
        const value = await current.current();
        if (!stopped) setState({ value, error: null });
      } catch (error) {
        if (!stopped) setState((before) => ({ ...before, error }));
      }
      if (!stopped && !document.hidden) timer = window.setTimeout(look, everyMs);
    };
    const shown = (): void => {
      clearTimeout(timer);
      if (!document.hidden) void look();
    };
    void look();
    document.addEventListener("visibilitychange", shown);
    return () => {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [everyMs, key, asked]);
  return { ...state, again: () => ask(0) };
}
