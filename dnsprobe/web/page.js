// The graph of the page, and the refresh. Names come from processes of the host, so they are only set as textContent.
"use strict";
(() => {
  const REFRESH_MS = 5000;
  // One open page may take this share of the daemon's time. If an answer takes long, the next request waits longer.
  const MAX_SHARE = 1 / 20;
  const TIMEOUT_MS = 10000;
  const ROW_REM = 1.6;
  // The failures of the moment are those since the last reading before which there are this many results, but no
  // longer.
  const FEW_RESULTS = 10;
  const RECENT_MS = 60000;
  // A narrower box cannot be seen or clicked. It appears after zooming in.
  const MIN_PIXELS = 3;

  const byId = (id) => document.getElementById(id);
  const icicle = byId("icicle");
  const search = byId("search");
  const back = byId("back");
  const pause = byId("pause");

  let root = null;
  // The names of results with their kind: good, negative or failed. Empty if answers are not tracked.
  let resultNames = [];
  // The readings of the last minute, oldest first: the time, and the results of each path.
  let readings = [];
  // These are paths, not nodes: each refresh makes new nodes, but the paths stay valid.
  let zoomed = "";
  let cursor = "";
  let described;
  let drawn = new Map();
  let paused = false;
  let timer = 0;
  let answered = new Date();
  let interval = REFRESH_MS;

  const counted = (total) => `${total.toLocaleString("en")} ${total === 1 ? "query" : "queries"}`;
  const share = (part) => `${(root.total ? (100 * part) / root.total : 0).toFixed(1)} %`;

  const sum = (numbers) => numbers.reduce((all, each) => all + each, 0);
  const percent = (part, whole) => part && part / whole < 0.001 ?
      "<0.1 %" :
      `${Math.min((100 * part) / whole, part < whole ? 99.9 : 100).toFixed(1)} %`;
  const failures = (results) => sum(results.filter((_, at) => resultNames[at][1] === "failed"));

  // The results of a node at the moment, and since how many seconds they came; null if there are none. The time is the
  // shortest that has a few results, and at most a minute.
  function recent(node) {
    const latest = readings.at(-1);
    let found = null;
    for (const reading of readings.slice(0, -1).reverse()) {
      const before = reading.results.get(node.path);
      // It may have been one of those that are not shown. Otherwise it was not there.
      if (before === undefined && !reading.isWhole) break;
      const results = node.results.map((queries, at) => Math.max(queries - (before === undefined ? 0 : before[at]), 0));
      if (sum(results)) found = {results, seconds: Math.round((latest.time - reading.time) / 1000)};
      if (sum(results) >= FEW_RESULTS) break;
    }
    return found;
  }

  // The share of failures that the box shows: that of the moment if there is any result, else of all time.
  function failing(node) {
    const now = recent(node);
    const results = now === null ? node.results : now.results;
    return {share: sum(results) ? failures(results) / sum(results) : 0, isRecent: now !== null};
  }

  function describeResults(node) {
    const text = (results) => {
      const named = results.map((queries, at) => [queries, ...resultNames[at]]).filter(([queries]) => queries);
      return named.map(([queries, name]) => `${queries.toLocaleString("en")} ${name}`).join(", ");
    };
    if (!sum(node.results)) return resultNames.length ? ", no result yet" : "";
    const now = recent(node);
    const ofNow = now === null ?
        "" :
        `, in the last ${now.seconds} s ${percent(failures(now.results), sum(now.results))} of ${
            sum(now.results).toLocaleString("en")}`;
    return `, ${percent(failures(node.results), sum(node.results))} failed${ofNow} (${text(node.results)})`;
  }

  function keepReading(nodes) {
    const time = performance.now();
    const total = root === null ? 0 : sum(root.results);
    // After a restart of the daemon, its numbers begin at zero.
    if (sum(nodes[0].results) < total) readings = [];
    readings = readings.filter((reading) => time - reading.time <= RECENT_MS);
    const isWhole = nodes.every((node) => node.more === 0);
    readings.push({time, isWhole, results: new Map(nodes.map((node) => [node.path, node.results]))});
  }

  // Each row has the index of its parent, which precedes it: see _graph in page.py.
  function buildTree(data) {
    const nodes = [];
    resultNames = data.results;
    for (const [parentIndex, name, total, own, more, rest, found = []] of data.nodes) {
      const parent = parentIndex < 0 ? null : nodes[parentIndex];
      const results = resultNames.map(() => 0);
      for (let at = 0; at < found.length; at += 2) results[found[at]] = found[at + 1];
      const node = {parent, name, total, own, more, rest, results, children: []};
      // Names contain neither a semicolon nor a newline. A newline ends the key of a box for hidden children.
      node.path = parent === null ? "" : `${parent.path};${name}`;
      node.depth = parent === null ? 0 : parent.depth + 1;
      if (parent !== null) parent.children.push(node);
      nodes.push(node);
    }
    keepReading(nodes);
    return nodes[0];
  }

  function find(path) {
    let node = root;
    for (const name of path.split(";").slice(1)) {
      const child = node.children.find((each) => each.name === name);
      if (child === undefined) return node;
      node = child;
    }
    return node;
  }

  // Returns the boxes to draw, from top to bottom and from left to right. Left and width are shares of the graph.
  function layout(zoom) {
    const minWidth = MIN_PIXELS / Math.max(icicle.clientWidth, 1);
    const boxes = [];
    const place = (node, left, width) => {
      if (width < minWidth) return;
      boxes.push({node, left, width, key: node.path});
      let at = left;
      for (const child of node.children) {
        const part = (width * child.total) / node.total;
        place(child, at, part);
        at += part;
      }
      const part = (width * node.rest) / node.total;
      if (node.more && part >= minWidth) boxes.push({node, left: at, width: part, key: `${node.path}\n`, rest: true});
    };
    const ancestors = [];
    for (let node = zoom.parent; node !== null; node = node.parent) ancestors.unshift(node);
    for (const node of ancestors) boxes.push({node, left: 0, width: 1, key: node.path, above: true});
    place(zoom, 0, 1);
    return boxes;
  }

  function hue(name) {
    let hash = 0;
    for (const char of name) hash = (hash * 31 + char.codePointAt(0)) % 360;
    return hash;
  }

  function label(box) {
    if (box.rest) return `${box.node.more.toLocaleString("en")} more`;
    return box.node.parent === null ? "all" : box.node.name;
  }

  function describe(box) {
    const total = box.rest ? box.node.rest : box.node.total;
    const own =
        box.rest || box.node.own === box.node.total || !box.node.own ? "" : `, ${counted(box.node.own)} of its own`;
    return `${counted(total)}, ${share(total)}${own}${box.rest ? "" : describeResults(box.node)}`;
  }

  const searchText = () => search.value.trim().toLowerCase();
  const matches = (node, text) => text !== "" && node.parent !== null && node.name.toLowerCase().includes(text);

  function update(element, box, text) {
    const title = label(box);
    if (element.textContent !== title) element.textContent = title;
    element.className = "node";
    element.classList.toggle("root", box.node.parent === null);
    element.classList.toggle("rest", Boolean(box.rest));
    element.classList.toggle("above", Boolean(box.above));
    element.classList.toggle("match", !box.rest && matches(box.node, text));
    element.style.setProperty("--hue", String(hue(box.node.name)));
    const failed = box.rest ? {share: 0, isRecent: false} : failing(box.node);
    element.classList.toggle("failing", failed.share > 0);
    element.classList.toggle("recent", failed.isRecent);
    element.style.setProperty("--failed", `${100 * failed.share}%`);
    element.style.left = `${100 * box.left}%`;
    element.style.width = `${100 * box.width}%`;
    element.style.top = `${ROW_REM * (box.node.depth + (box.rest ? 1 : 0))}rem`;
    element.tabIndex = box.key === cursor ? 0 : -1;
    element.setAttribute("aria-level", String(box.node.depth + (box.rest ? 2 : 1)));
    element.setAttribute("aria-label", `${title}: ${describe(box)}`);
    if (box.key === zoomed)
      element.setAttribute("aria-current", "true");
    else
      element.removeAttribute("aria-current");
  }

  function draw() {
    const zoom = find(zoomed);
    zoomed = zoom.path;
    const text = searchText();
    const boxes = root.total ? layout(zoom) : [];
    if (!boxes.some((box) => box.key === cursor)) cursor = zoomed;
    const focused = icicle.contains(document.activeElement);
    const before = drawn;
    drawn = new Map();
    let last = null;
    for (const box of boxes) {
      let element = before.get(box.key)?.element;
      if (element === undefined) {
        element = document.createElement("div");
        element.setAttribute("role", "treeitem");
        element.dir = "auto";
        element.dataset.path = box.key;
      }
      update(element, box, text);
      const here = last === null ? icicle.firstChild : last.nextSibling;
      if (here !== element) icicle.insertBefore(element, here);
      last = element;
      before.delete(box.key);
      drawn.set(box.key, {element, box});
    }
    for (const {element} of before.values()) element.remove();
    icicle.style.height =
        `${ROW_REM * (1 + Math.max(0, ...boxes.map((box) => box.node.depth + (box.rest ? 1 : 0))))}rem`;
    icicle.classList.toggle("searching", text !== "");
    back.disabled = zoomed === "";
    // An element loses the focus when it is moved or removed.
    if (focused && !icicle.contains(document.activeElement)) drawn.get(cursor)?.element.focus();
    showMatches(text);
    showDetails(drawn.get(described)?.box);
  }

  // The total of a match includes all nodes below it, so matches below a match are not added.
  function showMatches(text) {
    let total = 0;
    let places = 0;
    let hidden = false;
    const visit = (node) => {
      if (matches(node, text)) {
        total += node.total;
        places += 1;
        return;
      }
      hidden ||= node.more > 0;
      node.children.forEach(visit);
    };
    if (text !== "") visit(root);
    const atLeast = hidden ? "at least " : "";
    const where = `${places.toLocaleString("en")} ${places === 1 ? "place" : "places"}`;
    const found = text === "" ?
        "" :
        `${atLeast}${counted(total)} of ${root.total.toLocaleString("en")} (${share(total)}) in ${where}`;
    if (byId("found").textContent !== found) byId("found").textContent = found;
  }

  function zoomTo(path) {
    zoomed = path;
    // The whole graph also shows the old place of the cursor, which stays there.
    if (path !== "") cursor = path;
    draw();
    showDetails(drawn.get(cursor)?.box);
  }

  // The line below the graph is updated when the numbers change.
  function showDetails(box) {
    described = box?.key;
    const path = box === undefined ? "" : `${box.node.path.slice(1)}${box.rest ? `: ${label(box)}` : ""} `;
    const text = box === undefined ? "" : path + describe(box);
    if (byId("details").textContent !== text) byId("details").textContent = text;
  }

  function moveTo(key) {
    const next = drawn.get(key);
    if (next === undefined) return;
    drawn.get(cursor)?.element.setAttribute("tabindex", "-1");
    cursor = key;
    next.element.tabIndex = 0;
    next.element.focus();
  }

  function siblings(box) {
    const parent = box.rest ? box.node : box.node.parent;
    if (parent === null) return [box.key];
    return [...parent.children.map((child) => child.path), `${parent.path}\n`].filter((key) => drawn.has(key));
  }

  function neighbour(box, key) {
    const row = siblings(box);
    const at = row.indexOf(box.key);
    switch (key) {
      case "ArrowUp":
        return box.rest ? box.node.path : box.node.parent?.path;
      case "ArrowDown":
        return box.rest ? undefined : box.node.children.map((child) => child.path).find((path) => drawn.has(path));
      case "ArrowLeft":
        return row[at - 1];
      case "ArrowRight":
        return row[at + 1];
      case "Home":
        return "";
    }
    return undefined;
  }

  const boxOf = (target) => drawn.get(target.closest(".node")?.dataset.path)?.box;

  icicle.addEventListener("click", (event) => {
    const box = boxOf(event.target);
    if (box !== undefined && !box.rest) zoomTo(box.node.path);
  });
  icicle.addEventListener("keydown", (event) => {
    const box = boxOf(event.target);
    if (box === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      if (!box.rest) zoomTo(box.node.path);
    } else if (event.key === "Escape") {
      zoomTo("");
    } else if (/^(Arrow(Up|Down|Left|Right)|Home)$/.test(event.key)) {
      moveTo(neighbour(box, event.key));
    } else {
      return;
    }
    event.preventDefault();
  });
  icicle.addEventListener("focusin", (event) => showDetails(boxOf(event.target)));
  icicle.addEventListener("pointerover", (event) => showDetails(boxOf(event.target)));
  search.addEventListener("input", draw);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    search.value = "";
    draw();
    event.preventDefault();
  });
  back.addEventListener("click", () => {
    zoomTo("");
    drawn.get(cursor)?.element.focus();
  });
  window.addEventListener("resize", draw);

  function replaceData(fresh) {
    const data = JSON.parse(fresh.getElementById("data").textContent);
    const parts = [...document.querySelectorAll("[data-live]")];
    // After a restart with another configuration, the page has other parts.
    if (parts.some((part) => fresh.getElementById(part.id) === null) ||
        fresh.querySelectorAll("[data-live]").length !== parts.length) {
      location.reload();
      return;
    }
    for (const part of parts) {
      const next = fresh.getElementById(part.id);
      const selection = document.getSelection();
      const inUse = !selection.isCollapsed && part.contains(selection.anchorNode);
      if (!inUse && !part.isEqualNode(next)) part.replaceChildren(...document.importNode(next, true).childNodes);
    }
    root = buildTree(data);
    draw();
  }

  function showState(text, stale) {
    if (byId("state").textContent !== text) byId("state").textContent = text;
    document.body.classList.toggle("stale", stale);
  }

  function showRefreshState() {
    showState(paused ? "Paused." : `Refreshes every ${Math.round(interval / 1000)} seconds.`, false);
  }

  // Also called after a failed request, so that a daemon that is too slow gets fewer requests.
  function adaptInterval(began) {
    interval = Math.max(REFRESH_MS, (performance.now() - began) / MAX_SHARE);
  }

  async function refresh() {
    clearTimeout(timer);
    if (!paused && !document.hidden) {
      const began = performance.now();
      try {
        const options = {cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS)};
        // A relative URL would include a user name and a password from the address bar, and fetch refuses those.
        const answer = await fetch(location.origin + location.pathname, options);
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        const text = await answer.text();
        adaptInterval(began);
        replaceData(new DOMParser().parseFromString(text, "text/html"));
        answered = new Date();
        showRefreshState();
      } catch (error) {
        adaptInterval(began);
        const since = answered.toLocaleTimeString();
        showState(`No answer since ${since}, so the numbers are old (${error.message}).`, true);
      }
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, interval);
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    showRefreshState();
    if (!paused) refresh();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });

  byId("graph").hidden = false;
  byId("refresh").hidden = false;
  byId("as-list").open = false;
  root = buildTree(JSON.parse(byId("data").textContent));
  draw();
  showRefreshState();
  timer = setTimeout(refresh, interval);
})();
