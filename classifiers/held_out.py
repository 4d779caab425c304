"""A whole site that nothing has seen: how the persons are divided, and the proof that they are.

`site_partition` divides; `require_unseen_sites` refuses to call a site unseen that is not.
"""

from rarescan.cohort.contracts import Cohort, Part, Scan
from rarescan.cohort.partition import PERHAPS
from rarescan.errors import InputError, SettingError, nearest


def site_partition(cohort: Cohort, site: str) -> dict[str, Part]:
    """Return a partition whose test persons are all persons of one site, and nobody else.

    Persons of other sites who test in the cohort have no part, so that nothing is chosen by them;
    nor has who may be one of the site's persons under another pseudonym. A person with scans from
    several sites, this one among them, tests.

    Raises
    ------
    SettingError
        No scan is from that site.
    InputError
        All scans are.
    """
    at_site = {scan.person_id for scan in cohort.scans if _site(scan) == site}
    if not at_site:
        sites = sorted({found for scan in cohort.scans if (found := _site(scan))})
        raise SettingError(f"No scan is from the site '{site}'.", remedy=nearest(site, sites))
    heads = {scan.person_id: _head(scan) for scan in cohort.scans}
    tied = {heads[person] for person in at_site}
    kept: dict[str, Part] = {
        p: part for p, part in cohort.partition.items() if heads[p] not in tied and part != "test"
    }
    if not kept:
        raise InputError(
            "Every training person is from that site.",
            remedy="Hold out a site of a cohort that has two or more.",
        )
    tested: dict[str, Part] = dict.fromkeys(at_site, "test")
    return dict(sorted((kept | tested).items()))


def require_unseen_sites(cohort: Cohort) -> None:
    """Raise unless no test person's site is the site of a training or validation person.

    Whatever was trained on this cohort (`arm_scans.require_fitting` sees to it that the batch's
    generator was) has then not seen the scanner on which it is judged.

    Raises
    ------
    InputError
        A test person's site is known to training, or a site is not known at all.
    """
    seen, tested = (
        {_site(cohort.scans[i]) for i in cohort.indices(*parts)}
        for parts in (("train", "validation"), ("test",))
    )
    if seen & tested or None in tested | seen:
        raise InputError(
            "Test persons are from sites that training persons are from too (or from unknown "
            "ones), so classifier and generator are no strangers to their scanner.",
            remedy="Hold a site out first: `rarescan hold-out PREPARED OTHER --site NAME`; then "
            "train, select, generate and retrain from OTHER.",
        )


def _head(scan: Scan) -> str:
    """Return the first of the pseudonyms that may be this person."""
    marks = (flag.removeprefix(PERHAPS) for flag in scan.flags if flag.startswith(PERHAPS))
    return next(marks, scan.person_id)


def _site(scan: Scan) -> str | None:
    return scan.site or scan.condition.site
