/** Where a concept shows: regions of images, and its presence per class; also for words the student does not have. */

import { call, query } from "../api/client";
import type { RegionBox } from "../api/types";
import { studentName } from "../names";

export interface Example {
  concept: string;
  item: { itemId: string; digest: string };
  presence: number;
  box?: RegionBox | null;
}

export interface ClassPresence {
  label: string;
  meanPresence: number;
  /** Share of pairs (an image of the class, one of another) that presence ranks right; 0.5 says nothing. */
  auc: number;
}

export interface Shown {
  examples: Example[];
  known: boolean;
  classes: ClassPresence[];
}

const EXAMPLES = 12;

/** Returns where a word shows, over all images or those of one class. Throws ApiError. */
export async function show(project: string, student: string, word: string, label: string, signal?: AbortSignal): Promise<Shown> {
  type Reply = { examples: Example[]; presences: { known: boolean; classes: ClassPresence[] }[] };
  const path = `/v1/${studentName(project, student)}/conceptExamples${query({ concepts: [word], label, pageSize: EXAMPLES })}`;
  const reply = await call<Reply>("GET", path, undefined, signal);
  const presence = reply.presences?.[0];
  return { examples: reply.examples ?? [], known: presence?.known ?? true, classes: presence?.classes ?? [] };
}
