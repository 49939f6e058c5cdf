import assert from "node:assert/strict"
import { cp, readFile, symlink } from "node:fs/promises"
import { createRequire } from "node:module"
import { dirname, join } from "node:path"
import { test } from "node:test"
import { fileURLToPath } from "node:url"

import { installPackage, run } from "./packed.mjs"
import { root, script, WebSocketManager } from "./support.mjs"

const PAGE = ["ES2022", "DOM", "DOM.Iterable"]

const require = createRequire(import.meta.url)
const project = await installPackage()
await cp(new URL("types", import.meta.url), project.folder, { recursive: true })
await symlink(fileURLToPath(new URL("node_modules/@types", root)), join(project.folder, "node_modules", "@types"))

const typescript = require.resolve("typescript/package.json")
// The older TypeScript is the one that are-the-types-wrong depends on.
const older = createRequire(require.resolve("@arethetypeswrong/core")).resolve("typescript/package.json")
const versions = await Promise.all([typescript, older].map(async (file) => JSON.parse(await readFile(file)).version))

/** Returns the errors that tsc finds in `files` of the project. */
async function check(files, options, compiler = typescript) {
  const compilerOptions = {
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    noImplicitOverride: true,
    skipLibCheck: false,
    noEmit: true,
    target: "ES2022",
    module: "ESNext",
    moduleResolution: "Bundler",
    lib: PAGE,
    types: [],
    ...options,
  }
  const config = await project.write(`tsconfig.${++check.count}.json`, JSON.stringify({ compilerOptions, files }))
  const { bin } = JSON.parse(await readFile(compiler))
  const args = [join(dirname(compiler), bin.tsc), "--pretty", "false", "--project", config]
  return run(process.execPath, args, { cwd: project.folder, timeout: 60_000 }).then(
    ({ stdout }) => stdout,
    (error) => error.stdout || String(error),
  )
}
check.count = 0

const everyConsumer = {
  "a bundler's project": [["right.ts", "wrong.ts"], {}],
  "ES modules of Node": [["right.ts", "wrong.ts"], { module: "Node16", moduleResolution: "Node16" }],
  "CommonJS modules of Node": [["commonjs.cts"], { module: "Node16", moduleResolution: "Node16", lib: ["ES2022"] }],
  "a classic script": [["classic.ts"], { types: ["channels-websocket-utils"] }],
  "a project with Node's types and no DOM": [["node.ts"], { lib: ["ES2022"], types: ["node"] }],
  "a project with neither, and an old lib": [["bare.ts"], { lib: ["ES2018"] }],
}

for (const [name, [files, options]] of Object.entries(everyConsumer)) {
  test(`the types are correct in ${name}`, async () => {
    assert.equal(await check(files, options), "")
  })
}

test(`the types are correct with TypeScript ${versions[1]} as with ${versions[0]}`, async () => {
  const node10 = { module: "CommonJS", moduleResolution: "Node10", esModuleInterop: false, lib: ["ES2022"] }

  assert.notEqual(versions[0], versions[1])
  assert.equal(await check(["right.ts", "wrong.ts"], {}, older), "")
  assert.equal(await check(["commonjs.cts"], node10, older), "")
})

/** Names that the scripts on the pages use. Each is declared if the script does not declare it. */
const assumed = {
  manager: "WebSocketManager",
  path: "string",
  token: "string",
  options: "WebSocketManager.Options",
  drawAll: "(orders: object[]) => void",
  drawOne: "(order: object) => void",
}

test("the scripts on the pages call existing methods, and a misspelt call is found", async () => {
  const files = []
  const names = ["client", "howto_from_0_1", "howto_from_own_token", "javascript", "messages", "streams", "tokens"]
  for (const name of ["README.rst", ...names.map((each) => `docs/${each}.rst`)]) {
    const page = await readFile(new URL(name, root), "utf8")
    for (const [, block] of page.matchAll(/^\.\. code-block:: javascript\n\n((?: {4}.*\n|\n)+)/gm)) {
      const code = block.replace(/^ {4}/gm, "")
      const declared = Object.entries(assumed).filter(([each]) => !code.includes(`const ${each} =`))
      const lines = declared.map(([each, type]) => `declare const ${each}: ${type}`)
      files.push(`page.${files.length}.ts`)
      await project.write(files.at(-1), [...lines, code, "export {}"].join("\n"))
    }
  }
  // A script of a page is not strict, and the class is a global.
  const loose = { strict: false, exactOptionalPropertyTypes: false, noImplicitOverride: false }
  const options = { ...loose, allowUmdGlobalAccess: true, types: ["channels-websocket-utils"] }
  const misspelt = "declare const manager: WebSocketManager\nmanager.sendJson({ type: 'greet' })\nexport {}"
  await project.write("misspelt-script.ts", misspelt)

  assert.ok(files.length > 8)
  assert.equal(await check(files, options), "")
  assert.match(await check(["misspelt-script.ts"], options), /'sendJson' does not exist/)
})

test("the example of the docs compiles, and does not with a misspelt call", async () => {
  const page = await readFile(new URL("docs/client.rst", root), "utf8")
  const [, block] = /^\.\. code-block:: typescript\n\n((?: {4}.*\n|\n)+)/m.exec(page)
  const example = block.replace(/^ {4}/gm, "")
  await project.write("example.ts", example)
  await project.write("misspelt.ts", example.replace('"greet"', '"great"'))

  assert.equal(await check(["example.ts"], {}), "")
  assert.match(await check(["misspelt.ts"], {}), /"great"/)
})

test("each marked misuse is an error", async () => {
  const misuse = await readFile(new URL("types/wrong.ts", import.meta.url), "utf8")
  const claims = misuse.match(/@ts-expect-error: /g)
  await project.write("unmarked.ts", misuse.replaceAll("@ts-expect-error", ""))
  const errors = (await check(["unmarked.ts"], {})).match(/^unmarked\.ts\(/gm)

  assert.ok(claims.length > 40)
  assert.equal(errors.length, claims.length)
})

test("the types name each member, option, state and code of the script, and no other member or option", async () => {
  const source = await readFile(script, "utf8")
  const code = source.split("\n").filter((line) => !/^ *(\/\*|\*|\/\/)/.test(line))
  const naming = code.filter((line) => /\b(STOPS|reason|wait|dial|dialIn|retry|stop|WebSocketManagerError|fail|rejectCalls)\b/.test(line))
  const members = Object.getOwnPropertyNames(WebSocketManager.prototype).filter((name) => name !== "constructor")
  const options = [...source.matchAll(/\boptions\??\.(\w+)/g)].map((match) => match[1])
  const texts = naming.flatMap((line) => [...line.matchAll(/(?<!typeof \S+ === )"([a-z_]+)"/g)].map((match) => match[1]))
  const named = (names) => JSON.stringify(Object.fromEntries(names.map((name) => [name, true])))
  await project.write(
    "names.ts",
    `import W from "channels-websocket-utils"
     type Text = W.State | W.Reason | W.ManagerErrorCode | W.GapReason | W.SubscriptionState | keyof W.Events
     export const members = ${named(members)} satisfies Record<keyof W, true>
     export const statics = ${named(Object.keys(WebSocketManager))} satisfies Record<Exclude<keyof typeof W, "prototype">, true>
     export const options = ${named(options)} satisfies Record<keyof W.Options, true>
     export const texts = ${named(texts)} satisfies Partial<Record<Text, true>>`,
  )

  assert.ok(new Set(texts).size > 20)
  assert.equal(await check(["names.ts"], {}), "")
})
