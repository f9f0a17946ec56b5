"""``python -m gateway.lab.report FOLDER``: the stages' JUnit files as one ``report.xml``, and a line of counts."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree


def main(folder: Path) -> int:
    whole = ElementTree.Element("testsuites")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for name in ("quick", "slow", "soak"):
        file = folder / f"{name}.xml"
        for suite in ElementTree.parse(file).getroot().iter("testsuite") if file.exists() else ():
            suite.set("name", name)
            whole.append(suite)
            for count in counts:
                counts[count] += int(suite.get(count, 0))
    ElementTree.ElementTree(whole).write(folder / "report.xml", encoding="utf-8", xml_declaration=True)
    print("gw: " + ", ".join(f"{number} {name}" for name, number in counts.items()) + f"; report in {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
