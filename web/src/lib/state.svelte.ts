/** The one selection that all views share, kept in the location hash so that it can be sent to others. */

import { formatHash, parseHash, type Selection, type View } from "./route";

export const selection: Selection = $state(parseHash(globalThis.location?.hash ?? ""));

/** Changes the selection; `replace` leaves no entry in the browser's history (for drags and hovers). */
export function select(change: Partial<Selection>, replace = false): void {
  Object.assign(selection, change);
  const hash = formatHash(selection);
  if (hash === location.hash) return;
  if (replace) history.replaceState(history.state, "", hash);
  else history.pushState(history.state, "", hash);
}

/** Opens a view, with what else changes along with it. */
export function open(view: View, change: Partial<Selection> = {}): void {
  select({ ...change, view });
}

/** The hash of a view, for real links. */
export function href(view: View, change: Partial<Selection> = {}): string {
  return formatHash({ ...selection, ...change, view });
}

/** Follows the browser's back and forward buttons; returns the function that stops. */
export function followHistory(): () => void {
  const read = () => Object.assign(selection, parseHash(location.hash));
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  return () => {
    removeEventListener("popstate", read);
    removeEventListener("hashchange", read);
  };
}
