// The graph of the page, and its refresh. All text goes in as textContent: it comes from processes of the host.
"use strict";
(() => {
  const REFRESH_MS = 5000;
  // A page that takes the daemon long is asked for less often: this is the most that one who looks on takes of its
  // time.
  const SHARE = 1 / 20;
  const PATIENCE_MS = 10000;
  const ROW_REM = 1.6;
  // Narrower, nobody sees or hits it: what is in there shows once one zooms in.
  const LEAST_PIXELS = 3;

  const byId = (id) => document.getElementById(id);
  const icicle = byId("icicle");
  const search = byId("search");
  const back = byId("back");
  const pause = byId("pause");

  let root = null;
  // Paths, not nodes: they stay the same when the nodes are made anew.
  let zoomed = "";
  let cursor = "";
  let told;
  let drawn = new Map();
  let paused = false;
  let timer = 0;
  let answered = new Date();
  let interval = REFRESH_MS;

  const counted = (total) => `${total.toLocaleString("en")} ${total === 1 ? "query" : "queries"}`;
  const share = (part) => `${(root.total ? (100 * part) / root.total : 0).toFixed(1)} %`;

  // The nodes come flat, each with the place of its parent before it: see _flat in page.py.
  function grow(rows) {
    const nodes = [];
    for (const [above, name, total, own, more, rest] of rows) {
      const parent = above < 0 ? null : nodes[above];
      const node = {parent, name, total, own, more, rest, children: []};
      // No name has a semicolon in it, or a newline, which ends the key of what is left out.
      node.path = parent === null ? "" : `${parent.path};${name}`;
      node.depth = parent === null ? 0 : parent.depth + 1;
      if (parent !== null) parent.children.push(node);
      nodes.push(node);
    }
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

  // Return what is to be drawn, from top to bottom and left to right; left and width are shares of the whole width.
  function layout(zoom) {
    const least = LEAST_PIXELS / Math.max(icicle.clientWidth, 1);
    const boxes = [];
    const place = (node, left, width) => {
      if (width < least) return;
      boxes.push({node, left, width, key: node.path});
      let at = left;
      for (const child of node.children) {
        const part = (width * child.total) / node.total;
        place(child, at, part);
        at += part;
      }
      const part = (width * node.rest) / node.total;
      if (node.more && part >= least) boxes.push({node, left: at, width: part, key: `${node.path}\n`, rest: true});
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
        box.rest || box.node.own === box.node.total || !box.node.own ? "" : `, ${counted(box.node.own)} its own`;
    return `${counted(total)}, ${share(total)}${own}`;
  }

  const sought = () => search.value.trim().toLowerCase();
  const matches = (node, text) => text !== "" && node.parent !== null && node.name.toLowerCase().includes(text);

  function put(element, box, text) {
    const title = label(box);
    if (element.textContent !== title) element.textContent = title;
    element.className = "node";
    element.classList.toggle("root", box.node.parent === null);
    element.classList.toggle("rest", Boolean(box.rest));
    element.classList.toggle("above", Boolean(box.above));
    element.classList.toggle("match", !box.rest && matches(box.node, text));
    element.style.setProperty("--hue", String(hue(box.node.name)));
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
    const text = sought();
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
      put(element, box, text);
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
    // To move an element, or to remove it, takes the focus away.
    if (focused && !icicle.contains(document.activeElement)) drawn.get(cursor)?.element.focus();
    addUp(text);
    tell(drawn.get(told)?.box);
  }

  // What matches below something that matches is in that one's number already.
  function addUp(text) {
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
    const least = hidden ? "at least " : "";
    const where = `${places.toLocaleString("en")} ${places === 1 ? "place" : "places"}`;
    const found = text === "" ?
        "" :
        `${least}${counted(total)} of ${root.total.toLocaleString("en")} (${share(total)}) in ${where}`;
    if (byId("found").textContent !== found) byId("found").textContent = found;
  }

  function zoomTo(path) {
    zoomed = path;
    // All of it has room for where one was.
    if (path !== "") cursor = path;
    draw();
    tell(drawn.get(cursor)?.box);
  }

  // What the line below the graph says goes on to be true while numbers change.
  function tell(box) {
    told = box?.key;
    const path = box === undefined ? "" : `${box.node.path.slice(1)}${box.rest ? `: ${label(box)}` : ""} `;
    const text = box === undefined ? "" : path + describe(box);
    if (byId("told").textContent !== text) byId("told").textContent = text;
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
  icicle.addEventListener("focusin", (event) => tell(boxOf(event.target)));
  icicle.addEventListener("pointerover", (event) => tell(boxOf(event.target)));
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

  function take(fresh) {
    const rows = JSON.parse(fresh.getElementById("data").textContent);
    for (const part of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(part.id);
      const selection = document.getSelection();
      const inUse = !selection.isCollapsed && part.contains(selection.anchorNode);
      if (!inUse && !part.isEqualNode(next)) part.replaceChildren(...document.importNode(next, true).childNodes);
    }
    root = grow(rows);
    draw();
  }

  function say(text, stale) {
    if (byId("state").textContent !== text) byId("state").textContent = text;
    document.body.classList.toggle("stale", stale);
  }

  function sayHow() {
    say(paused ? "Paused." : `Refreshes itself every ${Math.round(interval / 1000)} seconds.`, false);
  }

  // Of the daemon's time, those who look on take a share, also while it takes too long.
  function slowDown(began) {
    interval = Math.max(REFRESH_MS, (performance.now() - began) / SHARE);
  }

  async function refresh() {
    clearTimeout(timer);
    if (!paused && !document.hidden) {
      const began = performance.now();
      try {
        const options = {cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS)};
        // Not relative to a URL that may have a name and a password in it.
        const answer = await fetch(location.origin + location.pathname, options);
        if (!answer.ok) throw new Error(`it answers with status ${answer.status}`);
        const text = await answer.text();
        slowDown(began);
        take(new DOMParser().parseFromString(text, "text/html"));
        answered = new Date();
        sayHow();
      } catch (error) {
        slowDown(began);
        const since = answered.toLocaleTimeString();
        say(`No refresh since ${since}: the numbers below are old (${error.message}).`, true);
      }
    }
    clearTimeout(timer);
    timer = setTimeout(refresh, interval);
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    sayHow();
    if (!paused) refresh();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });

  byId("graph").hidden = false;
  byId("refresh").hidden = false;
  byId("as-list").open = false;
  root = grow(JSON.parse(byId("data").textContent));
  draw();
  sayHow();
  timer = setTimeout(refresh, interval);
})();
