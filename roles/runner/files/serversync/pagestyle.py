# SPDX-FileCopyrightText: serversync.core contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a page of reports looks in light, in dark, on a telephone and on paper; and what filters its jobs."""

from __future__ import annotations

# Letters in any of these but --line stand out from --ground and from --sheet by 4.5 : 1 at least; a test has them all.
STYLE = """
:root{color-scheme:light dark;--ground:#f4f5f7;--sheet:#fff;--ink:#1d2127;--soft:#525b66;--line:#d4d8de;
--link:#0a53c1;--good:#1a7344;--warn:#805300;--differ:#9c3d00;--bad:#b3201a;--still:#525b66}
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--sheet:#1b1f25;--ink:#e5e8ec;--soft:#a5aeb9;--line:#363d47;
--link:#8db7ff;--good:#5fc38d;--warn:#dfb34a;--differ:#f29c62;--bad:#ff8c82;--still:#a5aeb9}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:76rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:1.5rem}
h1{font-size:1.45rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.1rem;margin:2.2rem 0 .7rem}
h3,h4{font-size:1rem;margin:0}
summary h3,summary h4{display:inline}
.server{display:flex;flex-wrap:wrap;gap:.1rem .8rem;align-items:baseline;margin:1.3rem 0 .5rem}
p{margin:.35rem 0}
ul{margin:0;padding:0;list-style:none}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
code,.path{font:.9em/1.5 ui-monospace,monospace;unicode-bidi:isolate}
code{background:var(--ground);border:1px solid var(--line);border-radius:4px;padding:.05em .4em;
box-decoration-break:clone;-webkit-box-decoration-break:clone}
.soft,caption,figcaption,dt,footer{color:var(--soft);font-size:.87rem}
.skip{position:absolute;left:-100vw;top:.4rem;background:var(--sheet);padding:.4rem .8rem;z-index:1}
.skip:focus{left:.6rem}
nav ul,.tally,.legend{display:flex;flex-wrap:wrap;gap:.4rem 1.1rem}
nav{margin:.8rem 0 0}
.tally{margin:1rem 0 0;gap:.5rem}
.tally li{background:var(--sheet);border:1px solid var(--line);border-radius:6px;padding:.3rem .7rem}
.tally b{font-size:1.1rem;font-variant-numeric:tabular-nums}
.legend{margin:.2rem 0 .8rem;font-size:.87rem;color:var(--soft)}
.legend li{display:flex;align-items:flex-end;gap:.4rem}
.legend svg{width:10px;height:24px;flex:none}
.mark{width:1.1em;height:1.1em;vertical-align:-.2em;flex:none;fill:none;stroke:currentColor;stroke-width:2;
stroke-linecap:round;stroke-linejoin:round}
.state{white-space:nowrap;font-weight:600}
.equal{color:var(--good)}
.equal_with_warnings,.waiting,.warning{color:var(--warn)}
.different{color:var(--differ)}
.failed,.invalid,.silent,.error{color:var(--bad)}
.skipped,.none,.info{color:var(--still)}
.running{color:var(--link)}
.list,.jobs,.card,.sheet{background:var(--sheet);border:1px solid var(--line);border-radius:6px}
.list>li{padding:.45rem .8rem}
.list>li+li,.job+.job{border-top:1px solid var(--line)}
.list>li>p{margin-left:1.5rem}
.job>summary{display:grid;grid-template-columns:.8rem 10.5rem minmax(0,1fr) 20rem 8.2rem;gap:.2rem .9rem;
align-items:center;padding:.45rem .8rem;cursor:pointer;list-style:none}
summary::-webkit-details-marker{display:none}
.job>summary:before{content:"";width:.5rem;height:.5rem;border:solid var(--soft);border-width:0 2px 2px 0;
transform:rotate(-45deg)}
.job[open]>summary:before{transform:rotate(45deg)}
.job>summary:hover{background:var(--ground)}
.inner{padding:.3rem .8rem .9rem;border-top:1px solid var(--line);scroll-margin-top:5rem}
.inner>*{margin:.8rem 0 0}
.more>summary{color:var(--link);cursor:pointer;list-style:disclosure-closed inside}
.more[open]>summary{list-style-type:disclosure-open}
.strip{display:block;width:100%;height:24px;
background:linear-gradient(var(--line),var(--line)) bottom/100% 1px no-repeat}
.strip path{fill:currentColor}
.bars{display:block;width:100%;height:48px;fill:var(--link);border-bottom:1px solid var(--soft)}
figure{margin:0;min-width:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 1.6rem}
.axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;font-variant-numeric:tabular-nums}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,9.5rem),1fr));gap:.5rem 1.2rem}
.facts div,.versions div{min-width:0}
dd{margin:0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.93rem}
caption{text-align:left;padding:0 0 .2rem}
th,td{text-align:left;vertical-align:top;padding:.2rem .9rem .2rem 0;border-bottom:1px solid var(--line);
font-weight:400;overflow-wrap:normal}
td.path,td.error,th.long{overflow-wrap:anywhere;min-width:8rem}
td.error{min-width:18rem}
thead th{color:var(--soft);font-size:.87rem;white-space:nowrap}
.number,.way,time{white-space:nowrap}
.number{text-align:right}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:.6rem}
.card{padding:.6rem .8rem;min-width:0}
.card .path{font-weight:600}
.versions{display:grid;grid-template-columns:1fr 1fr;gap:.4rem 1rem;margin:.4rem 0}
.sheet{padding:.8rem}
.sheet,section>.more{margin-top:.8rem}
.picture{display:block;font:12px/1 system-ui,sans-serif}
.picture text{fill:var(--ink);unicode-bidi:isolate}
.picture .server{font-weight:600}
.picture .path{font:11px/1 ui-monospace,monospace}
.picture .left{text-anchor:end}
.picture .name{fill:var(--soft);stroke:var(--sheet);stroke-width:4px;paint-order:stroke;font-size:11px}
.picture .round{fill:var(--bad);font-weight:600}
.picture .box{fill:var(--ground);stroke:var(--line)}
.picture .arrow{fill:none;stroke:var(--soft);stroke-width:1.2}
.picture .arrow.round{stroke:var(--bad);stroke-width:2.6;stroke-dasharray:7 4}
#ahead path{fill:var(--soft)}
#round path{fill:var(--bad)}
#filter{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center;margin:0 0 .8rem}
#filter[hidden],.job[hidden],.server[hidden]{display:none}
input,select{font:inherit;color:var(--ink);background:var(--sheet);border:1px solid var(--soft);border-radius:4px;
padding:.25rem .5rem;max-width:100%}
footer{padding-top:1.6rem;padding-bottom:2.5rem}
@media(max-width:60rem){.job>summary{grid-template-columns:1rem auto minmax(0,1fr)}
.job>summary .strip{grid-column:2/4;grid-row:2}.job>summary .when{grid-column:2/4;grid-row:3}}
@media(min-width:34rem){.facts div:first-child:nth-last-child(n+4){grid-column:span 2}}
@media(max-width:34rem){body{font-size:14px}main,header,footer{padding:0 .8rem}
.tally{gap:.3rem}.tally li{padding:.1rem .45rem}
.versions{grid-template-columns:1fr}}
@media(forced-colors:active){.strip path,.bars path{fill:CanvasText}.mark{stroke:CanvasText}}
@media print{:root{--ground:#fff;--sheet:#fff;--ink:#000;--soft:#444;--line:#bbb;--link:#0a53c1;--good:#1a7344;
--warn:#805300;--differ:#9c3d00;--bad:#b3201a;--still:#444}body{font-size:11px}.skip,nav,#filter{display:none!important}
.job,.card,.list>li{break-inside:avoid}.wide{overflow:visible}}
"""

# Shows the filter, which is of no use without it, and hides the jobs that are not looked for.
SCRIPT = """
(function(){
var box=document.getElementById("filter");if(!box)return;
var words=box.querySelector("input"),state=box.querySelector("select"),told=box.querySelector("output");
var jobs=[].slice.call(document.querySelectorAll(".job")),servers=[].slice.call(document.querySelectorAll(".of"));
function look(){
var wanted=words.value.toLowerCase(),shown=0;
jobs.forEach(function(job){
var fits=(!state.value||job.dataset.state===state.value)&&job.dataset.words.indexOf(wanted)>=0;
job.hidden=!fits;shown+=fits});
servers.forEach(function(one){
var title=one.querySelector(".server"),all=!wanted&&!state.value;
if(title)title.hidden=!all&&!one.querySelector(".job:not([hidden])")});
told.textContent=shown+" of "+jobs.length+" jobs"}
words.addEventListener("input",look);state.addEventListener("change",look);box.hidden=false;look()})();
"""
