import assert from "node:assert/strict"
import { readdir, readFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { basename, join } from "node:path"
import { test } from "node:test"
import { pathToFileURL } from "node:url"
import { promisify } from "node:util"
import { runInNewContext } from "node:vm"
import { gzipSync } from "node:zlib"

import { checkPackage, createPackageFromTarballData } from "@arethetypeswrong/core"
import { build, transform } from "esbuild"
import { publint } from "publint"
import { build as viteBuild } from "vite"
import webpack from "webpack"

import { installPackage } from "./packed.mjs"
import { FakeSocket, root, script } from "./support.mjs"

// Bytes, minified for ES2020 and gzipped. If you raise a limit, explain the gain in docs/decisions.rst.
const SCRIPT_LIMIT = 7175
const BUNDLE_LIMIT = 7485

const STATIC = "channels_websocket_utils/static/websocket_utils"
const IMPORT = 'import byDefault, { WebSocketManager } from "channels-websocket-utils"'
const USE = "globalThis.given = WebSocketManager\nglobalThis.byDefault = byDefault"

const project = await installPackage()
const meta = JSON.parse(await readFile(join(project.installed, "package.json"), "utf8"))
const require = createRequire(join(project.folder, "any.cjs"))
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

function assertRuns(bundled) {
  const window = page()
  runInNewContext(bundled, window)

  assertDials(window.given)
  assert.equal(window.byDefault, window.given)
  assert.equal(window.WebSocketManager, undefined)
}

async function bundle(contents, options = {}) {
  const { outputFiles, warnings } = await build({
    stdin: { contents, resolveDir: project.folder },
    bundle: true,
    write: false,
    target: "es2020",
    logLevel: "silent",
    ...options,
  })
  assert.deepEqual(warnings, [])
  return outputFiles[0].text
}

/** The bundles of some entries, as webpack makes them for production. */
async function pack(...configurations) {
  const output = (name) => ({ path: join(project.folder, "webpack"), filename: name })
  const shared = { context: project.folder, mode: "production", target: ["web", "es2020"] }
  const compiler = webpack(configurations.map((own, n) => ({ ...shared, output: output(`${n}.js`), ...own })))
  const stats = await promisify(compiler.run.bind(compiler))()
  await promisify(compiler.close.bind(compiler))()
  const { errors, warnings } = stats.toJson({ all: false, errors: true, warnings: true })
  assert.deepEqual([...errors, ...warnings], [])
  return Promise.all(configurations.map((_, n) => readFile(join(project.folder, "webpack", `${n}.js`), "utf8")))
}

// The script in a page

test("browsers with ES2021 need no build step", async () => {
  const [lowered, whole] = await Promise.all(["es2021", "esnext"].map((target) => transform(source, { target })))
  const older = await transform(source, { target: "es2020" })

  assert.equal(lowered.code, whole.code)
  assert.notEqual(older.code, whole.code)
})

test("as a classic script it defines one global", () => {
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

test("it runs without eval, as a strict Content-Security-Policy requires", async () => {
  const { code } = await transform(source, { minify: true, target: "es2020" })

  assert.doesNotMatch(code, /\beval\b|new Function|\bFunction\(/)
})

test("a browser that imports the .mjs gets the class too, and the global", async (t) => {
  const asModule = (text) => `data:text/javascript,${encodeURIComponent(text)}`
  const mjs = await readFile(new URL(script.href.replace(/js$/, "mjs")), "utf8")
  t.after(() => delete globalThis.WebSocketManager)

  const imported = await import(asModule(mjs.replace("./WebSocketManager.js", asModule(source))))

  assert.equal(typeof imported.default, "function")
  assert.equal(imported.default, globalThis.WebSocketManager)
  assert.equal(imported.WebSocketManager, imported.default)
})

// The package

test("the package contains the script, its types, and the files that npm always adds", async () => {
  const files = await readdir(project.installed, { recursive: true, withFileTypes: true })
  const names = files.filter((file) => file.isFile()).map(({ name }) => name)
  const inside = await readdir(join(project.installed, STATIC))
  const scripts = ["WebSocketManager.d.mts", "WebSocketManager.d.ts", "WebSocketManager.js", "WebSocketManager.mjs"]

  assert.deepEqual(inside.sort(), scripts)
  assert.deepEqual(names.sort(), ["LICENSE", "README.rst", ...scripts, "package.json"])
  for (const name of scripts) {
    const [packed, ours] = [join(project.installed, STATIC, name), new URL(name, script)]
    assert.equal(await readFile(packed, "utf8"), await readFile(ours, "utf8"))
  }
})

test("package.json names each file in its conditions, types first", () => {
  const { import: esm, require: cjs } = meta.exports["."]
  const paths = [esm.types, cjs.types, cjs.default, esm.default]

  assert.deepEqual(Object.keys(esm), ["types", "default"])
  assert.deepEqual(Object.keys(cjs), ["types", "default"])
  assert.deepEqual([meta.types, meta.main, meta.module], [cjs.types, cjs.default, esm.default])
  assert.deepEqual(meta.files.map((file) => `./${file}`), paths)
  assert.deepEqual(meta.sideEffects, [cjs.default, esm.default])
  assert.equal(meta.license, "MIT")
  assert.equal(meta.dependencies, undefined)
})

test("the package has the version of the Python package", async () => {
  const python = await readFile(new URL("channels_websocket_utils/__init__.py", root), "utf8")

  assert.equal(meta.version, /^__version__ = "(.+)"$/m.exec(python)[1])
})

test("publint finds nothing", async () => {
  const tarball = new Uint8Array(project.tarball).buffer
  const { messages } = await publint({ pack: { tarball }, strict: true })

  assert.deepEqual(messages, [])
})

test("are-the-types-wrong finds no mistake in any resolution", async () => {
  const { types, problems, entrypoints } = await checkPackage(createPackageFromTarballData(new Uint8Array(project.tarball)))
  const found = Object.entries(entrypoints["."].resolutions).map(([how, { resolution }]) => [how, basename(resolution.fileName)])

  assert.deepEqual(types, { kind: "included" })
  assert.deepEqual(problems, [])
  assert.deepEqual(Object.fromEntries(found), {
    node10: "WebSocketManager.d.ts",
    "node16-cjs": "WebSocketManager.d.ts",
    "node16-esm": "WebSocketManager.d.mts",
    bundler: "WebSocketManager.d.mts",
  })
})

// Imports

test("require() gives the class, also as .default, and leaves no global", (t) => {
  const WebSocketManager = require("channels-websocket-utils")

  assert.equal(WebSocketManager.default, WebSocketManager)
  assert.equal(globalThis.WebSocketManager, undefined)
  Object.assign(globalThis, { WebSocket: FakeSocket, location: page().location })
  t.after(() => ["WebSocket", "location"].forEach((name) => delete globalThis[name]))
  assertDials(WebSocketManager)
})

test("import gives the class that require() gives, as default and by name", async () => {
  const entry = await project.write("node.mjs", 'export * as given from "channels-websocket-utils"')
  const { given } = await import(pathToFileURL(entry))

  assert.equal(given.default, require("channels-websocket-utils"))
  assert.equal(given.WebSocketManager, given.default)
  assert.deepEqual(Object.keys(given).sort(), ["WebSocketManager", "default"])
})

test("esbuild makes a working bundle of an import", async () => {
  assertRuns(await bundle(`${IMPORT}\n${USE}`))
})

test("esbuild makes a working bundle of a require()", async () => {
  assertRuns(await bundle(`const { default: byDefault } = require("channels-websocket-utils")
    const WebSocketManager = require("channels-websocket-utils")\n${USE}`))
})

test("esbuild makes a working bundle for Node", async () => {
  const text = await bundle('export { default } from "channels-websocket-utils"', { format: "esm" })
  const given = await import(`data:text/javascript,${encodeURIComponent(text)}`)

  assert.equal(typeof given.default.WebSocketManagerError, "function")
})

test("vite makes a working bundle", async () => {
  const input = await project.write("vite.js", `${IMPORT}\n${USE}`)
  const { output } = await viteBuild({
    root: project.folder,
    configFile: false,
    logLevel: "error",
    build: { write: false, target: "es2020", rollupOptions: { input } },
  })

  assert.equal(output.length, 1)
  assertRuns(output[0].code)
})

test("webpack makes working bundles, also of a bare import", async () => {
  await project.write("webpack.js", `${IMPORT}\n${USE}`)
  await project.write("bare.js", 'import "channels-websocket-utils"')
  // A bundler that does not convert CommonJS treats the file as a classic script, which defines the global.
  const classic = { parser: { javascript: { commonjs: false } } }
  const [imported, bare] = await pack({ entry: "./webpack.js" }, { entry: "./bare.js", module: classic })

  assertRuns(imported)
  const window = page()
  runInNewContext(bare, window)
  assertDials(window.WebSocketManager)
})

test("a bundler keeps a bare import without a warning", async () => {
  assert.match(await bundle('import "channels-websocket-utils"'), /class WebSocketManagerError/)
})

test("script and bundle are within their size limits", async (t) => {
  const { code } = await transform(source, { minify: true, target: "es2020" })
  const bundled = await bundle('export { default } from "channels-websocket-utils"', { minify: true, format: "esm" })
  const [scriptBytes, bundleBytes] = [code, bundled].map((text) => gzipSync(text, { level: 9 }).length)

  t.diagnostic(`classic script: ${scriptBytes} B minified and gzipped, limit ${SCRIPT_LIMIT}`)
  t.diagnostic(`ES module bundle: ${bundleBytes} B minified and gzipped, limit ${BUNDLE_LIMIT}`)
  assert.ok(scriptBytes <= SCRIPT_LIMIT)
  assert.ok(bundleBytes <= BUNDLE_LIMIT)
})
