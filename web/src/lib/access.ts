/** Roles in projects, as the gateway's access rules have them. Pure functions. */

import type { components } from "./api/schema";

export type Who = components["schemas"]["WhoAmIResponse"];

/** Each may do what those before it may. */
export const ROLES = ["viewer", "tuner", "runner", "admin"] as const;
export type Role = (typeof ROLES)[number];
const EVERY = "*";
const SUMMARIES: Record<Role, string> = {
  viewer: "may look at everything, and change nothing",
  tuner: "may tune students and correct labels; may not add data or start jobs",
  runner: "may tune, add data, and start jobs",
  admin: "may do everything, and make keys for others",
};

/** The role somebody has in a project; undefined for none. */
export function roleIn(who: Who, project: string): Role | undefined {
  const held = who.grants.filter((one) => one.project === project || one.project === EVERY);
  return ROLES[Math.max(-1, ...held.map((one) => place(one.role)))];
}

/** What a role may do, for people. */
export function summary(role: Role | undefined): string {
  return role ? SUMMARIES[role] : "may see nothing of it";
}

/** Why somebody may not do what needs a role, in the server's own words; empty where he may. */
export function refusal(who: Who | undefined, project: string, needed: Role, what = "This"): string {
  if (!who || !isAsked(who)) return "";
  const role = roleIn(who, project);
  if (role && ROLES.indexOf(role) >= ROLES.indexOf(needed)) return "";
  return `${what} needs the role ${needed} in project ${project}; ${role ? `yours is ${role}` : "you have none there"}.`;
}

/** Whether the gateway asks who calls. */
export function isAsked(who: Who): boolean {
  return who.credential !== "CREDENTIAL_KIND_NONE";
}

/** Names of the projects somebody has a role in; of one who has it everywhere, none. */
export function projectsOf(who: Who): string[] {
  return who.grants.map((one) => one.project).filter((one) => one !== EVERY);
}

/** What people call somebody. */
export function nameOf(who: Who): string {
  return who.displayName || who.subject.replace(/^apiKeys\//, "key ").replace(/^users\//, "");
}

function place(role: string): number {
  return (ROLES as readonly string[]).indexOf(role.replace("ROLE_", "").toLowerCase());
}
