"""How pages look, and the script that sorts their tables and opens in print what is folded."""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
"""

STYLE = """\
:root { color-scheme: light dark; --text: #1b1b1b; --muted: #5c5c5c; --line: #d9d9d9; --page: #fff; --stripe: #f5f6f7;
        --good: #14692d; --bad: #a6190f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --muted: #a8a8a8; --line: #3a3d40; --page: #16181a; --stripe: #1f2225;
          --good: #5fd47f; --bad: #ff938a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 78rem; background: var(--page); color: var(--text);
       font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: .6rem 0; }
figure { margin: 1.25rem 0; }
figure .scroll { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: .5rem; }
figcaption, caption { color: var(--muted); font-size: .9rem; text-align: left; }
figcaption { max-width: 44rem; margin-top: .4rem; }
caption { padding-bottom: .4rem; }
dt { font-weight: 600; }
a { color: inherit; }
.scroll { overflow-x: auto; margin: 1.25rem 0; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: baseline; }
th.number, td.number { padding: .35rem 0 .35rem .9rem; text-align: right; }
.number + :not(.number) { padding-left: .9rem; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 16rem; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody th { font-weight: 500; white-space: nowrap; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: var(--stripe); }
th button { all: unset; cursor: pointer; font: inherit; }
th button::after { content: " ↕"; color: var(--muted); }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
:focus-visible { outline: 2px solid #3b82f6; outline-offset: 2px; }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.open { color: var(--muted); font-weight: 600; }
.summary { border: 1px solid var(--line); border-left: 4px solid var(--muted); border-radius: 6px; padding: .25rem 1rem; }
.summary h2 { border: 0; margin: .5rem 0; padding: 0; }
details { margin: 2.5rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); }
details > summary { font-size: 1.25rem; font-weight: 700; cursor: pointer; }
@media print {
  :root { color-scheme: light; --text: #000; --muted: #444; --line: #bbb; --page: #fff; --good: #14692d; --bad: #a6190f; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: 7pt; max-width: 100%; }
  th, td, td.number, td.long, tbody th { min-width: 0; padding: .2rem .4rem .2rem 0;
      white-space: normal; overflow-wrap: anywhere; }
  th button::after { content: ""; }
  figure img { min-width: 0 !important; padding: 0; }
  figure, tr, dt { break-inside: avoid; }
}"""

SCRIPT = """\
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) continue;
  const number = text => Number.parseFloat(text.replace(/,(?=\\d{3})/g, ""));
  const missing = text => text === "" || text === "\u2013" || text === "nan";
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const rows = [...body.rows].map(row => [row.cells[place].textContent.trim(), row]);
      const known = rows.filter(([text]) => !missing(text)), rest = rows.filter(([text]) => missing(text));
      const numeric = known.every(([text]) => !Number.isNaN(number(text)));
      known.sort(([a], [b]) => (numeric ? number(a) - number(b) : a.localeCompare(b)) * (down ? -1 : 1));
      body.append(...[...known, ...rest].map(([, row]) => row));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => (part.open = true)));
"""
