"""Random words for the control: phrases that say nothing about how anything looks.

A student over named concepts should beat one over as many random words: else the names carry no
meaning. The words are everyday nouns of business, time and thought, drawn in pairs, so that there
are enough of them for any concept set and none describes an image.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

_TEXT = """
absence account advice agenda agreement alibi allowance amendment answer apology appeal appointment
argument attempt audit average bargain belief benefit bias bonus budget bureaucracy calculation
candidate career caution census certainty chance chapter charity clause coincidence comment
committee comparison complaint compromise concern conclusion conference confidence consent
contract conversation copyright correction courtesy credit crisis criticism curiosity custom data
deadline debate debt decade decision deficit definition delay demand democracy denial deposit
diagnosis dilemma diploma discount discussion dispute doubt draft duty economy edition education
effort election emphasis employment entitlement equation error essay estimate ethics evidence
exception excuse expense experience explanation export failure fame fee fiction finance forecast
formula fortune franchise freedom friendship fund genre goal gossip grammar gratitude guarantee
guess guideline habit harmony hearing heritage hint history holiday honesty hypothesis idea
identity idiom income index inflation influence inquiry instruction insurance interest interview
intuition invoice irony issue journey judgement justice knowledge label law lease lecture legacy
lesson liability liberty license loan logic loyalty luck majority margin meaning measure meeting
memory method minority minute mistake monopoly month mood moral mortgage motive myth negotiation
neglect news norm notice notion objection obligation occasion offence opinion option origin
outcome overtime owner pardon patience pause payment penalty pension percentage permission
philosophy plot poetry policy poll postponement poverty practice precedent preference premise
pretext price pride principle priority privacy privilege probability procedure profit promise
proof proposal prose protest proverb purpose question quota ratio reason receipt recession
reference reform refund regret rehearsal rent reply report reputation request research respect
result revenue review revision reward rhetoric rhythm riddle right risk routine rumour salary
sanction satire schedule scholarship scope secret semester sentence session silence skill slogan
sponsor standard statistic status strategy strike struggle subsidy success suggestion summary
surplus surprise suspicion syllable syntax system talent tariff tax tenure term theorem theory
thesis thought threat title topic trade tradition translation treaty trend trial tribute trust
truth tuition tuesday turnover union vacancy value variance verdict version veto victory virtue
visit vote voucher wage warning warranty week welfare wisdom wish yesterday zeal
"""
_NOUNS = _TEXT.split()


def control_words(count: int, seed: int, *, avoid: Iterable[str] = ()) -> list[str]:
    """Return `count` different two-word phrases; the same seed and count give the same ones."""
    taken = {word.lower() for word in avoid}
    draw = random.Random(f"control words {seed}")
    chosen: list[str] = []
    while len(chosen) < count:
        phrase = " ".join(draw.sample(_NOUNS, 2))
        if phrase not in taken:
            taken.add(phrase)
            chosen.append(phrase)
    return chosen
