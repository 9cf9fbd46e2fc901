/** Where a concept shows: regions of images, and its presence per class; also for words the student does not have. */

import { call, query } from "../api/client";
import type { components } from "../api/schema";
import type { ConceptExample, ConceptPresence } from "../api/types";
import { studentName } from "../names";

export type ClassPresence = components["schemas"]["ClassPresence"];

export interface Shown {
  examples: ConceptExample[];
  known: boolean;
  classes: ClassPresence[];
}

const EXAMPLES = 12;
/** More are asked for than shown, because some may be of the test split. */
const ASKED = 40;

/**
 * Returns where a word shows, over all images or those of one class. Images that `isOpen` denies are left out: those of
 * the test split must not be seen by somebody who tunes. Throws ApiError.
 */
export async function show(
  project: string,
  student: string,
  word: string,
  label: string,
  isOpen: (itemId: string) => boolean,
  signal?: AbortSignal,
): Promise<Shown> {
  type Reply = { examples: ConceptExample[]; presences: ConceptPresence[] };
  const path = `/v1/${studentName(project, student)}/conceptExamples${query({ concepts: [word], label, pageSize: ASKED })}`;
  const reply = await call<Reply>("GET", path, undefined, signal);
  const presence = reply.presences?.[0];
  const examples = (reply.examples ?? []).filter((one) => isOpen(one.item.itemId)).slice(0, EXAMPLES);
  return { examples, known: presence?.known ?? true, classes: presence?.classes ?? [] };
}
