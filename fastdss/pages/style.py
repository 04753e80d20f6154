"""The style sheet of fastdss's HTML pages."""

STYLE = """
:root{color-scheme:light dark;--paper:light-dark(#fbfaf8,#15171b);--card:light-dark(#fff,#1d2025);
  --ink:light-dark(#1d1f24,#e8e7e3);--quiet:light-dark(#666b75,#a0a5af);--rule:light-dark(#e3e1dc,#32363d);
  --rail:light-dark(#eceae5,#2a2e35);--good:light-dark(#1f8a5b,#46bd87);--bad:light-dark(#cf4436,#f0776a);
  --hot:light-dark(#d55e00,#f28c38);--wash:light-dark(#e06a0a,#c8600f);--cold:light-dark(#2b7bb9,#5aa9e0);
  --mark:light-dark(#ffd9d2,#6e2a22);
  --markink:light-dark(#8f1d12,#ffd9d2);--s0:light-dark(#8a8f99,#a0a5af);--s1:light-dark(#cf4436,#f0776a);
  --s2:light-dark(#d98a00,#eeb04a);--s3:light-dark(#2f6fde,#7aa7ff);--s4:light-dark(#0f9b8e,#4fd0c2);
  --s5:light-dark(#8b53c6,#be95ee);--s6:light-dark(#b04a82,#e58fbd);--s7:light-dark(#5f7a1f,#b3cf63);
  --s8:light-dark(#8a5a2b,#d0a070);--s9:light-dark(#3b4250,#c9ced8)}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .4em}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:2.6em 0 .4em}
h3{font-size:1rem;margin:0 0 .6em}
p{margin:.5em 0 1em;max-width:46em}
.lead{font-size:1.12rem;color:var(--quiet)}
.quiet,small,figcaption{color:var(--quiet)}
small{font-size:.82em}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--rail);padding:.1em .35em;
  border-radius:4px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:14px;margin:1.6em 0}
.card,figure,details.box{background:var(--card);border:1px solid var(--rule);border-radius:12px;
  padding:16px 18px;margin:0 0 16px}
.cards .card{margin:0}
.card .big{font-size:1.9rem;font-weight:650;letter-spacing:-.02em;line-height:1.1;display:block;margin-top:.35em}
.card .big small{font-size:.95rem;font-weight:600;letter-spacing:0;color:inherit}
.card .big.bad{color:var(--bad)}
.card .big.good{color:var(--good)}
.card p{margin:.1em 0 0;font-size:.92rem;color:var(--quiet)}
.wide{overflow-x:auto;margin:0 0 16px;background:var(--card);border:1px solid var(--rule);border-radius:12px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
tbody tr:last-child>*{border-bottom:0}
thead th{font-size:.8rem;font-weight:600;color:var(--quiet);vertical-align:bottom}
tbody th{font-weight:600;min-width:9.5em}
tr.group th{background:var(--rail);font-size:.84rem;white-space:normal}
.measure{display:block;min-width:92px;white-space:nowrap}
svg.interval{display:block;width:100%;height:7px;margin-top:5px;border-radius:3px}
.interval .rail{fill:var(--rail)}
.interval.good .bar{fill:var(--good)}
.interval.bad .bar{fill:var(--bad)}
.interval line{stroke:var(--ink);stroke-width:1.6;vector-effect:non-scaling-stroke;opacity:.75}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
.tokens{font-size:1.02rem;line-height:1.9;max-width:none;margin:.2em 0 .9em;overflow-wrap:anywhere;white-space:pre-wrap}
.tokens span{padding:.14em 0}
.heat0{background:color-mix(in srgb,var(--wash) 68%,transparent);text-decoration:underline 3px}
.heat1{background:color-mix(in srgb,var(--wash) 44%,transparent);text-decoration:underline 2px}
.heat2{background:color-mix(in srgb,var(--wash) 22%,transparent);text-decoration:underline 1px dashed}
.heat3{background:color-mix(in srgb,var(--cold) 5%,transparent)}
.heat4{background:color-mix(in srgb,var(--cold) 11%,transparent)}
.heat5{background:color-mix(in srgb,var(--cold) 19%,transparent)}
.heat0,.heat1,.heat2{text-underline-offset:.22em;text-decoration-color:var(--hot);text-decoration-skip-ink:none}
mark{background:var(--mark);color:var(--markink);border-radius:3px;padding:.05em .2em}
figure.alone{max-width:600px}
svg.chart{display:block;width:100%;height:auto;overflow:visible}
.chart text{fill:var(--quiet);font-size:12px}
.chart .grid{stroke:var(--rule)}
.chart .line,.legend .line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:6 4}
.chart .bandname{font-weight:600;font-size:12.5px}
.band{opacity:.5;fill:var(--rail)}
.band.disclosure{fill:color-mix(in srgb,var(--wash) 44%,transparent)}
.band.advice{fill:color-mix(in srgb,var(--cold) 19%,transparent)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3em 1.3em;padding:0;margin:.2em 0 .8em;font-size:.88rem}
.legend svg{width:26px;height:8px;margin-right:.45em;vertical-align:middle}
.chip{display:inline-block;white-space:nowrap;font-size:.76rem;font-weight:600;border-radius:99px;padding:.1em .65em;
  margin:0 .35em .2em 0;background:var(--rail);color:var(--quiet)}
.chip.good{color:var(--good)}
.chip.bad{color:var(--bad)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px}
.panels.thirds{grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr))}
.panels figure{margin:0}
.answers{display:grid;grid-template-columns:minmax(120px,190px) 1fr;gap:10px 18px;margin:0}
.answers dt{font-weight:600;font-size:.9rem}
.answers dd{margin:0;overflow-wrap:anywhere;white-space:pre-line}
details summary{cursor:pointer;font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:2px 26px;margin:0;font-size:.9rem}
.facts div{display:flex;justify-content:space-between;gap:1em;border-bottom:1px solid var(--rule);padding:5px 0}
.facts dt{color:var(--quiet)}
.facts dd{margin:0;text-align:right;overflow-wrap:anywhere}
@media (max-width:560px){main{padding:24px 14px 60px}.answers{grid-template-columns:1fr;gap:2px}.answers dd{
  margin-bottom:12px}}
.s0{stroke:var(--s0)}
.s1{stroke:var(--s1)}
.s2{stroke:var(--s2)}
.s3{stroke:var(--s3)}
.s4{stroke:var(--s4)}
.s5{stroke:var(--s5)}
.s6{stroke:var(--s6)}
.s7{stroke:var(--s7)}
.s8{stroke:var(--s8)}
.s9{stroke:var(--s9)}
.dot.s0{fill:var(--s0)}
.dot.s1{fill:var(--s1)}
.dot.s2{fill:var(--s2)}
.dot.s3{fill:var(--s3)}
.dot.s4{fill:var(--s4)}
.dot.s5{fill:var(--s5)}
""".strip()
