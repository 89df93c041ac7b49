"""How the report's page looks: light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --text: #1c1e22; --soft: #5b626e; --line: #dfe1e5; --back: #fcfcfb; --card: #f3f3f0;
  --accent: #0b62a3; --bar: #7db4de; --good: #19764a; --bad: #b02a21; --alarm: #fbeceb; --shade: #0003; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --soft: #a0a8b4; --line: #353a42; --back: #15171b; --card: #1f2228;
    --accent: #79b8ec; --bar: #34658c; --good: #63c793; --bad: #f28b82; --alarm: #37201f; --shade: #000c; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem 1.5rem 5rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
main { min-width: 0; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 2px; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 1.5rem; font-size: .9rem; }
nav a { text-decoration: none; padding: .15rem 0; }
nav a:hover { text-decoration: underline; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .3rem; }
section { margin: 2.6rem 0 0; }
h1 + p + section { margin-top: 1.6rem; }
.note { color: var(--soft); max-width: 50rem; margin: .2rem 0 .9rem; font-size: .94rem; }
h3 { font-size: 1rem; margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(32rem, 100%), 1fr)); gap: 1.4rem;
  margin-bottom: 1.2rem; }
.beside { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; align-items: flex-start; }
.beside > div { min-width: 0; }
.beside .note { margin: .5rem 0 0; font-size: .8rem; }
.beside > div + div .captions { font-size: .66rem; }
figure { margin: 0; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; background:
  linear-gradient(to right, var(--back) 40%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--back) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; line-height: 1.4; }
th, td { text-align: left; padding: .34rem .65rem; white-space: nowrap; vertical-align: top; }
th:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--soft); vertical-align: bottom;
  white-space: normal; max-width: 8rem; }
tbody th { font-weight: 600; max-width: 17rem; white-space: normal; overflow-wrap: anywhere; }
tbody tr > * { border-bottom: 1px solid var(--line); }
tbody + tbody tr:first-child > * { border-top: 1px solid var(--soft); }
section > .scroll tbody th { min-width: 9rem; }
.figure { text-align: right; }
.ci { display: inline-block; min-width: 6.6em; text-align: left; color: var(--soft); }
.bar { display: block; height: 3px; margin-top: 2px; border-radius: 2px;
  background: linear-gradient(to right, var(--bar) var(--share), var(--line) 0); }
#headline table { font-size: 1rem; }
ul.checks { list-style: none; padding: 0; margin: .9rem 0; max-width: 60rem; }
ul.checks li { display: flex; gap: .7rem; padding: .45rem .8rem; margin: .35rem 0; border-left: 4px solid var(--good);
  background: var(--card); border-radius: 0 4px 4px 0; font-size: .94rem; }
ul.checks li.fired { border-color: var(--bad); background: var(--alarm); }
ul.checks b { color: var(--good); width: 1em; flex: none; text-align: center; }
ul.checks .fired b { color: var(--bad); }
ul.checks em { font-style: normal; font-weight: 600; margin-right: .4rem; }
ul.checks em::after { content: ":"; }
img.plot { display: block; width: 37rem; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: 6px; padding: .45rem .9rem; }
details[open] { padding-bottom: .9rem; }
summary { cursor: pointer; font-weight: 600; font-size: .94rem; }
.strip { max-width: 100%; margin: .5rem 0 0; }
.strip img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.captions { display: grid; overflow-wrap: anywhere; font-size: .8rem; line-height: 1.35; text-align: center; color: var(--soft); }
.right { color: var(--good); }
.right::before { content: "✓ "; }
.wrong { color: var(--bad); }
.wrong::before { content: "✗ "; }
code, pre { font: .84rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-wrap: normal; max-height: 30rem; overflow-y: auto; }
ul.made { padding-left: 1.1rem; }
@media (min-width: 92rem) {
  body { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 2.5rem; max-width: 92rem; padding-top: 2.4rem; }
  nav { position: sticky; top: 2.4rem; align-self: start; flex-direction: column; flex-wrap: nowrap; margin: 0; }
}
@media (max-width: 40rem) {
  body { padding: 1rem .9rem 3rem; }
  .captions { font-size: .62rem; }
  details { padding-left: .5rem; padding-right: .5rem; }
}
@media print { nav { display: none; } body { display: block; } }
"""
