import { describe, expect, it } from "vitest";

import { ROLES, projectsOf, refusal, roleIn, type Who } from "../src/lib/access";

const grant = (project: string, role: string) => ({ project, role }) as Who["grants"][number];

function who(...grants: Who["grants"]): Who {
  return { subject: "apiKeys/k1", displayName: "", credential: "CREDENTIAL_KIND_API_KEY", grants, role: "ROLE_UNSPECIFIED" };
}

describe("roleIn", () => {
  it("takes the higher of the role in the project and the one everywhere", () => {
    const both = who(grant("fruit", "ROLE_TUNER"), grant("*", "ROLE_VIEWER"));
    expect([roleIn(both, "fruit"), roleIn(both, "apple")]).toEqual(["tuner", "viewer"]);
    expect(roleIn(who(grant("fruit", "ROLE_VIEWER"), grant("*", "ROLE_ADMIN")), "fruit")).toBe("admin");
  });

  it("is none in another project, and for a role that this page does not know", () => {
    expect(roleIn(who(grant("fruit", "ROLE_ADMIN")), "apple")).toBeUndefined();
    expect(roleIn(who(grant("fruit", "ROLE_UNSPECIFIED")), "fruit")).toBeUndefined();
  });
});

describe("refusal", () => {
  it.each(ROLES.map((role, at) => [role, at] as const))("lets a %s do what the roles up to it may", (role, at) => {
    const caller = who(grant("fruit", `ROLE_${role.toUpperCase()}`));
    expect(ROLES.map((needed) => refusal(caller, "fruit", needed) === "")).toEqual(ROLES.map((_, other) => other <= at));
  });

  it("refuses nothing before the gateway has said who calls, and where it asks nobody", () => {
    expect(refusal(undefined, "fruit", "admin")).toBe("");
    expect(refusal({ ...who(), credential: "CREDENTIAL_KIND_NONE" }, "fruit", "admin")).toBe("");
  });
});

it("lists the projects of somebody who has a role in some", () => {
  expect(projectsOf(who(grant("*", "ROLE_VIEWER"), grant("a", "ROLE_ADMIN"), grant("b", "ROLE_VIEWER")))).toEqual(["a", "b"]);
});
