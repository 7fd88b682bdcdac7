import { strings } from "./strings";

/** What one request may ask for at most (contract: `limit`). */
const MOST = 500;

/** Shows a hundred more of a list of which `page` is what there is so far; nothing where that is all. */
export function More(props: {
  page: { next: unknown } | null;
  limit: number;
  show: (limit: number) => void;
}) {
  const { page, limit, show } = props;
  if (page === null || page.next === null || limit >= MOST) return null;
  return (
    <button type="button" onClick={() => show(Math.min(MOST, limit + 100))}>
      {strings.more}
    </button>
  );
}
