// What may stand at the cursor's place in a policy? Completion for the editor: keys and words come from the JSON
// schema that the server makes of its grammar, names of pools and models from what this gateway knows.
"use strict";

window.policyCompletion = (() => {
  const ITEM = "[]";

  // ---- where is the cursor? the keys above it, "[]" for an entry of a list ------------------------------------
  function partsOf(line) {
    const [, lead, dashes, content] = line.match(/^(\s*)((?:-\s+|-$)*)(.*)$/);
    return { indent: lead.length, dashes: dashes.length, content };
  }
  const keyOf = (content) => content.match(/^([A-Za-z0-9_.-]+)\s*:(?:\s+(.*)|)$/);

  // The part of a line before the cursor: keys of `{…}` and `[…]` that are open there, and what is being written.
  function withinLine(text) {
    const path = [];
    const open = [];
    let key = null;
    let token = "";
    let quoted = "";
    for (const letter of text) {
      if (quoted) {
        if (letter === quoted) quoted = "";
        else token += letter;
      } else if (letter === '"' || letter === "'") {
        quoted = letter;
      } else if (letter === ":" && key === null) {
        key = token.trim();
        token = "";
      } else if (letter === "{") {
        if (key !== null) path.push(key);
        open.push({ kind: "{", keys: key === null ? 0 : 1 });
        key = null;
        token = "";
      } else if (letter === "[") {
        if (key !== null) path.push(key);
        path.push(ITEM);
        open.push({ kind: "[", keys: key === null ? 1 : 2 });
        key = null;
        token = "";
      } else if ((letter === "}" || letter === "]") && open.length) {
        path.splice(path.length - open.pop().keys);
        token = "";
        key = open.length ? null : "";
      } else if (letter === ",") {
        if (open.length && open[open.length - 1].kind === "{") key = null;
        token = "";
      } else {
        token += letter;
      }
    }
    const isItem = open.length > 0 && open[open.length - 1].kind === "[";
    return { path, key, token: token.trimStart(), isItem };
  }

  function placeAt(lines, row, column) {
    const before = lines[row].slice(0, column);
    const here = partsOf(before);
    const inner = withinLine(here.content);
    const path = [];
    let indent = here.indent + here.dashes;
    let inList = false;
    if (here.dashes) {
      path.unshift(ITEM);
      indent = here.indent;
      inList = true;
    }
    for (let at = row - 1; at >= 0 && (indent > 0 || inList); at -= 1) {
      if (!lines[at].trim() || /^\s*#/.test(lines[at])) continue;
      const { indent: lead, dashes, content } = partsOf(lines[at]);
      const depth = lead + dashes;
      const key = keyOf(content);
      const opens = key && (!key[2] || key[2].startsWith("#"));
      const isParent = opens && (depth < indent || (inList && depth === indent && !dashes));
      if (isParent) {
        path.unshift(key[1]);
        indent = depth;
        inList = false;
      } else if (!(dashes && !inList && depth === indent)) {
        continue;
      }
      if (dashes) {
        path.unshift(ITEM);
        indent = lead;
        inList = true;
      }
    }
    path.push(...inner.path);
    const isValue = inner.key !== null && inner.key !== "";
    if (isValue) path.push(inner.key);
    return { path, isValue: isValue || inner.isItem || path[path.length - 1] === ITEM, prefix: inner.token };
  }

  // ---- what does the schema say of that place? ----------------------------------------------------------------
  function alternatives(root, node) {
    if (!node) return [];
    if (node.$ref) {
      const found = node.$ref.slice(2).split("/").reduce((part, name) => part?.[name], root);
      return alternatives(root, found).map((one) => ({ ...one, description: node.description ?? one.description }));
    }
    const several = node.anyOf ?? node.oneOf ?? node.allOf;
    if (several) return several.flatMap((one) => alternatives(root, one)).map((one) => ({ description: node.description, ...one }));
    return [node];
  }

  function nodesAt(root, path) {
    let nodes = alternatives(root, root);
    for (const step of path) {
      const next = nodes.map((node) => {
        if (step === ITEM) return node.items;
        const other = typeof node.additionalProperties === "object" ? node.additionalProperties : null;
        return node.properties?.[step] ?? other;
      });
      nodes = next.flatMap((node) => alternatives(root, node));
    }
    return nodes;
  }

  const POOLS = new Set(["pools", "predictable", "creative", "use", "home_pool"]);
  function namesAt(path, hints) {
    const key = [...path].reverse().find((step) => step !== ITEM);
    if (key === "use") return [...hints.pools, ...hints.external];
    if (POOLS.has(key)) return hints.pools;
    if (key === "overflow") return hints.external;
    return key === "model" && path.includes("when") ? hints.models : [];
  }

  function wordsAt(root, path, hints) {
    const words = new Map(namesAt(path, hints).map((name) => [name, "name"]));
    for (const node of nodesAt(root, path)) {
      for (const word of node.enum ?? (node.const === undefined ? [] : [node.const])) words.set(String(word), "value");
      if (node.type === "boolean") ["true", "false"].forEach((word) => words.set(word, "value"));
      // A list may be written on one line, and what is a list may often be a single word, too.
      if (node.type === "array") {
        for (const [word, kind] of wordsAt(root, [...path, ITEM], hints)) words.set(word, kind);
      }
    }
    return words;
  }

  function shapeOf(root, node) {
    const kinds = alternatives(root, node).map((one) => one.type);
    if (kinds.includes("object")) return ":\n";
    return kinds.includes("array") && !kinds.includes("string") ? ": []" : ": ";
  }

  function keysAt(root, path, taken) {
    const found = [];
    for (const node of nodesAt(root, path)) {
      for (const [name, part] of Object.entries(node.properties ?? {})) {
        if (taken.has(name)) continue;
        const isNeeded = (node.required ?? []).includes(name);
        const described = alternatives(root, part)[0]?.description ?? "";
        found.push({ name, insert: `${name}${shapeOf(root, part).replace("\n", "").replace("[]", "")}`, description: part.description ?? described, isNeeded });
      }
    }
    return found;
  }

  // Keys that stand beside the one that is being written: they are not offered twice.
  function takenAt(lines, row, column) {
    const own = partsOf(lines[row].slice(0, column));
    const depth = own.indent + own.dashes;
    const taken = new Set();
    for (const step of [-1, 1]) {
      if (step === -1 && own.dashes) continue; // its own line begins the entry
      for (let at = row + step; at >= 0 && at < lines.length; at += step) {
        if (!lines[at].trim() || /^\s*#/.test(lines[at])) continue;
        const { indent, dashes, content } = partsOf(lines[at]);
        if (indent + dashes < depth) break;
        if (step === 1 && dashes && indent + dashes === depth) break;
        const key = indent + dashes === depth && keyOf(content);
        if (key) taken.add(key[1]);
        if (step === -1 && dashes && indent + dashes === depth) break;
      }
    }
    return taken;
  }

  function complete(schema, hints, lines, row, column) {
    const place = placeAt(lines, row, column);
    const found = [];
    if (place.isValue) {
      for (const [word, kind] of wordsAt(schema, place.path, hints)) found.push({ caption: word, value: word, meta: kind, score: kind === "name" ? 900 : 800 });
    }
    const isKeyOfEntry = place.path[place.path.length - 1] === ITEM;
    if (!place.isValue || isKeyOfEntry) {
      for (const key of keysAt(schema, place.path, takenAt(lines, row, column))) {
        found.push({ caption: key.name, value: key.insert, meta: key.isNeeded ? "needed" : "key", score: key.isNeeded ? 1000 : 700, docText: key.description });
      }
    }
    return found;
  }

  return { complete, placeAt };
})();
