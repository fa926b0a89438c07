// Drives Chromium through one visit of a page. Reads the visit as JSON from standard input:
// { browser, flags, url, width, height, scheme, steps: [[name, ...arguments]] }; prints { results, problems, requests }.
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update",
];

let text = "";
for await (const part of process.stdin) text += part;
const visit = JSON.parse(text);

const browser = await chromium.launch({ executablePath: visit.browser, args: [...FLAGS, ...visit.flags] });
const page = await browser.newPage({
  viewport: { width: visit.width, height: visit.height },
  colorScheme: visit.scheme,
  deviceScaleFactor: 1,
});
page.setDefaultTimeout(20_000);
const problems = [];
const requests = [];
page.on("request", (request) => requests.push(request.url()));
page.on("pageerror", (error) => problems.push(String(error)));
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) problems.push(message.text());
});

/** What a visitor does, and what can be asked of the page. */
const actions = {
  click: (selector) => page.click(selector),
  fill: (selector, value) => page.fill(selector, value),
  choose: (selector, value) => page.selectOption(selector, value),
  upload: (selector, file) => page.setInputFiles(selector, file),
  press: (selector, keys) => page.press(selector, keys),
  shown: (selector) => page.waitForSelector(selector, { state: "visible" }).then(() => true),
  gone: (selector) => page.waitForSelector(selector, { state: "hidden" }).then(() => true),
  text: (selector) => page.innerText(selector),
  texts: (selector) => page.locator(selector).allInnerTexts(),
  evaluate: (code) => page.evaluate(code),
  inWorker: (code) => page.workers()[0].evaluate(code),
  screenshot: (path) => page.screenshot({ path, fullPage: true }).then(() => path),
  async download(selector, path) {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click(selector)]);
    await download.saveAs(path);
    return download.suggestedFilename();
  },
  // What is dropped on the page, or pasted with the keyboard: a file of a media type, its bytes as base64.
  drop: (type, content) =>
    page.evaluate(
      ([type, content]) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "given", { type }));
        document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
      },
      [type, content],
    ),
  async paste(type, content) {
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await page.evaluate(
      ([type, content]) => {
        const blob = new Blob([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], { type });
        return navigator.clipboard.write([new ClipboardItem({ [type]: blob })]);
      },
      [type, content],
    );
    await page.keyboard.press("Control+V");
  },
};

try {
  await page.goto(visit.url);
  const results = [];
  for (const [name, ...given] of visit.steps) results.push((await actions[name](...given)) ?? null);
  process.stdout.write(JSON.stringify({ results, problems, requests }));
} catch (error) {
  const said = await page.innerText("body").catch(() => "");
  console.error([error.message, "The page:", said, "Its problems:", ...problems].join("\n"));
  process.exitCode = 1;
} finally {
  await browser.close();
}
