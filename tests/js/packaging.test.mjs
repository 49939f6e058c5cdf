import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { test } from "node:test"
import { runInNewContext } from "node:vm"
import { gzipSync } from "node:zlib"

import { build, transform } from "esbuild"

import { FakeSocket, root, script } from "./support.mjs"

const SCRIPT_LIMIT = 3700
const BUNDLE_LIMIT = 3700

const require = createRequire(import.meta.url)
const source = await readFile(script, "utf8")
const page = () => ({
  URL,
  AbortController,
  WebSocket: FakeSocket,
  clearTimeout,
  location: { href: "https://example.com/" },
  setTimeout,
})

function assertDials(WebSocketManager) {
  FakeSocket.all.length = 0
  const manager = WebSocketManager("/ws/", "wst_a")

  assert.ok(manager instanceof WebSocketManager)
  assert.deepEqual(FakeSocket.all.map(({ url }) => url), ["wss://example.com/ws/wst_a"])
  assert.equal(new WebSocketManager.WebSocketManagerError("closed").code, "closed")
  manager.close()
}

async function bundle(contents, options = {}) {
  const { outputFiles, warnings } = await build({
    stdin: { contents, resolveDir: new URL(".", root).pathname },
    bundle: true,
    write: false,
    target: "es2020",
    logLevel: "silent",
    ...options,
  })
  assert.deepEqual(warnings, [])
  return outputFiles[0].text
}

test("as a classic script it gives one global, and nothing else", () => {
  const window = page()
  const before = Object.keys(window)
  runInNewContext(source, window)

  assert.deepEqual(Object.keys(window).filter((name) => !before.includes(name)), ["WebSocketManager"])
  assertDials(window.WebSocketManager)
})

test("loading it reads no browser global", () => {
  const read = []
  const bare = new Proxy(Object.create(null), {
    has: (names, name) => !(name in globalThis) || ["location", "document", "navigator", "fetch"].includes(name),
    get: (names, name) => {
      if (typeof name === "string") read.push(name)
      return names[name]
    },
  })
  new Function("page", `with (page) { ${source} }`)(bare)

  assert.deepEqual(read.filter((name) => !["module", "WebSocketManager"].includes(name)), [])
  delete globalThis.WebSocketManager
})

test("it runs without eval, as a strict Content-Security-Policy asks", async () => {
  const { code } = await transform(source, { minify: true, target: "es2020" })

  assert.doesNotMatch(code, /\beval\b|new Function|\bFunction\(/)
})

test("require() of the package gives the class, also as .default", () => {
  const WebSocketManager = require("channels-websocket-utils")

  assert.equal(typeof WebSocketManager, "function")
  assert.equal(WebSocketManager.default, WebSocketManager)
  assert.equal(globalThis.WebSocketManager, undefined)
})

test("import of the package gives the class require() gives, as default and by name", async () => {
  const imported = await import("channels-websocket-utils")

  assert.equal(imported.default, require("channels-websocket-utils"))
  assert.equal(imported.WebSocketManager, imported.default)
  assert.deepEqual(Object.keys(imported).sort(), ["WebSocketManager", "default"])
})

test("a browser that imports the .mjs gets the class too", async (t) => {
  const asModule = (text) => `data:text/javascript,${encodeURIComponent(text)}`
  const mjs = await readFile(new URL(script.href.replace(/js$/, "mjs")), "utf8")
  t.after(() => delete globalThis.WebSocketManager)

  const imported = await import(asModule(mjs.replace("./WebSocketManager.js", asModule(source))))

  assert.equal(typeof imported.default, "function")
  assert.equal(imported.default, globalThis.WebSocketManager)
  assert.equal(imported.WebSocketManager, imported.default)
})

for (const statement of [
  'import WebSocketManager from "channels-websocket-utils"',
  'import { WebSocketManager } from "channels-websocket-utils"',
  'const WebSocketManager = require("channels-websocket-utils")',
]) {
  test(`a bundle of ${statement} runs`, async () => {
    const window = page()
    runInNewContext(await bundle(`${statement}\nglobalThis.given = WebSocketManager`), window)

    assertDials(window.given)
    assert.equal(window.WebSocketManager, undefined)
  })
}

test("a bundle for Node as ES module runs", async () => {
  const text = await bundle('export { default } from "channels-websocket-utils"', { format: "esm" })
  const given = await import(`data:text/javascript,${encodeURIComponent(text)}`)

  assert.equal(typeof given.default.WebSocketManagerError, "function")
})

test("script and bundle stay small", async (t) => {
  const { code } = await transform(source, { minify: true, target: "es2020" })
  const bundled = await bundle('export { default } from "channels-websocket-utils"', { minify: true, format: "esm" })
  const [scriptBytes, bundleBytes] = [code, bundled].map((text) => gzipSync(text, { level: 9 }).length)

  t.diagnostic(`classic script: ${scriptBytes} B minified and gzipped, limit ${SCRIPT_LIMIT}`)
  t.diagnostic(`ES module bundle: ${bundleBytes} B minified and gzipped, limit ${BUNDLE_LIMIT}`)
  assert.ok(scriptBytes <= SCRIPT_LIMIT)
  assert.ok(bundleBytes <= BUNDLE_LIMIT)
})

test("package.json names only files that are there", async () => {
  const meta = JSON.parse(await readFile(new URL("package.json", root), "utf8"))
  const { import: esm, require: cjs } = meta.exports["."]

  for (const file of [esm, cjs, meta.main, meta.module, ...meta.files, ...meta.sideEffects]) {
    await readFile(new URL(file, root))
  }
  assert.deepEqual(meta.sideEffects, [cjs, esm])
  assert.equal(meta.license, "MIT")
  assert.equal(meta.dependencies, undefined)
})
