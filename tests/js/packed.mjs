import { execFile } from "node:child_process"
import { mkdtemp, readdir, readFile, realpath, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { after } from "node:test"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"

import { root } from "./support.mjs"

export const run = promisify(execFile)

/**
 * A new project with the package installed from npm's tarball, without a network.
 *
 * Its scripts are ES modules. The folder is removed after the tests of the file.
 */
export async function installPackage() {
  const folder = await mkdtemp(join(await realpath(tmpdir()), "websocket-manager-"))
  after(() => rm(folder, { recursive: true, force: true }))
  const npm = (cwd, ...args) => run("npm", [...args, "--offline", "--silent"], { cwd, timeout: 60_000 })

  await npm(fileURLToPath(root), "pack", "--ignore-scripts", "--pack-destination", folder)
  const [tarball] = (await readdir(folder)).map((name) => join(folder, name))
  await writeFile(join(folder, "package.json"), JSON.stringify({ private: true, type: "module" }))
  await npm(folder, "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund", tarball)

  return {
    folder,
    tarball: await readFile(tarball),
    installed: join(folder, "node_modules", "channels-websocket-utils"),
    async write(name, text) {
      await writeFile(join(folder, name), text)
      return join(folder, name)
    },
  }
}
