/** Light or dark: the system's wish until somebody chooses. */

const KEY = "theme";
const dark = globalThis.matchMedia?.("(prefers-color-scheme: dark)");

function wanted(): "light" | "dark" {
  const chosen = globalThis.localStorage?.getItem(KEY);
  if (chosen === "light" || chosen === "dark") return chosen;
  return dark?.matches ? "dark" : "light";
}

export const theme = $state({ name: wanted() });

function apply(): void {
  document.documentElement.dataset.theme = theme.name;
}

/** Applies the theme and follows the system; returns the function that stops. */
export function followTheme(): () => void {
  const follow = () => {
    theme.name = wanted();
    apply();
  };
  apply();
  dark?.addEventListener("change", follow);
  return () => dark?.removeEventListener("change", follow);
}

/** Changes to the other theme and remembers it. */
export function toggleTheme(): void {
  theme.name = theme.name === "dark" ? "light" : "dark";
  localStorage.setItem(KEY, theme.name);
  apply();
}

/** The value of a CSS variable, for canvases. Reads `theme.name`, so that effects run again. */
export function colour(name: string): string {
  void theme.name;
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
