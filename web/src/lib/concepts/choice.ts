/** A list of words somebody puts together: which to leave out, which mean the same, which to add. Pure functions. */

export interface Choice {
  /** Words of the student that are left out. */
  dropped: string[];
  /** Synonyms: word to the word that stands for it. */
  sameAs: Record<string, string>;
  /** Words that the student does not have. */
  own: string[];
}

export const EMPTY: Choice = { dropped: [], sameAs: {}, own: [] };
export const MAX_WORD = 100;

/** Returns a word as it is stored: trimmed, single blanks. */
export const tidy = (text: string): string => text.trim().replace(/\s+/g, " ");

/** Returns what is wrong with a word; empty where nothing is. */
export function wordProblem(word: string): string {
  if (!word) return "Type a word first.";
  return word.length > MAX_WORD ? `A word has at most ${MAX_WORD} characters.` : "";
}

/** Returns the words of the list: kept, each group once, one's own at the end. */
export function wordsOf(words: readonly string[], choice: Choice): string[] {
  const out = new Set(choice.dropped);
  const all = [...words, ...choice.own.filter((word) => !words.includes(word))];
  return all.filter((word) => !out.has(word) && !choice.sameAs[word]);
}

/** Takes a word in, or leaves it out. */
export function keep(choice: Choice, words: readonly string[], kept: boolean): Choice {
  const changed = new Set(words);
  const rest = choice.dropped.filter((one) => !changed.has(one));
  return { ...choice, dropped: kept ? rest : [...rest, ...changed] };
}

/** Makes a word, and all it stood for, a synonym of another. */
export function group(choice: Choice, word: string, as: string): Choice {
  const root = choice.sameAs[as] ?? as;
  if (root === word) return choice;
  const sameAs = { ...choice.sameAs, [word]: root };
  for (const [one, other] of Object.entries(sameAs)) if (other === word) sameAs[one] = root;
  delete sameAs[root];
  return { ...choice, sameAs };
}

/** Takes a word out of its group. */
export function ungroup(choice: Choice, word: string): Choice {
  const { [word]: _, ...sameAs } = choice.sameAs;
  return { ...choice, sameAs };
}

/** Returns the synonyms that a word stands for. */
export const synonyms = (choice: Choice, word: string): string[] =>
  Object.keys(choice.sameAs).filter((one) => choice.sameAs[one] === word);

/** Adds a word of one's own. */
export const add = (choice: Choice, word: string): Choice =>
  choice.own.includes(word) ? choice : { ...choice, own: [word, ...choice.own] };

/** Takes a word of one's own away, and out of all groups. */
export function remove(choice: Choice, word: string): Choice {
  const sameAs = Object.fromEntries(Object.entries(choice.sameAs).filter(([one, other]) => one !== word && other !== word));
  return { own: choice.own.filter((one) => one !== word), dropped: choice.dropped.filter((one) => one !== word), sameAs };
}

const key = (student: string): string => `stillhouse.choice.${student}`;

/** Returns the choice that was left for a student in this browser. */
export function recall(student: string): Choice {
  try {
    return { ...EMPTY, ...(JSON.parse(localStorage.getItem(key(student)) ?? "{}") as Partial<Choice>) };
  } catch {
    return EMPTY;
  }
}

/** Keeps a student's choice in this browser. */
export function retain(student: string, choice: Choice): void {
  try {
    localStorage.setItem(key(student), JSON.stringify(choice));
  } catch {
    // Full or forbidden storage: the choice then lasts as long as the page.
  }
}
