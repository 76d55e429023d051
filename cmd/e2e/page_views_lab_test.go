//go:build lab && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/devops-agent/devops-agent/agent/wire"
	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// logReady is true when the log in view has at least so many lines, and shows some.
func logReady(lines int) string {
	return fmt.Sprintf(`Number((document.querySelector(".log-sheet")?.style.height || "0").replace("px", "")) >= %d && document.querySelectorAll(".line").length > 0`, 20*lines)
}

// TestPageLog: a log of 100,000 lines is followed, scrolled, searched and downloaded while few of them are in the
// document; then the build is cancelled and run again.
func TestPageLog(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	stop := home.LabPath("stop")
	file := "name: long\nsteps:\n  - id: count\n    script: |\n      seq -f 'this is line %06.0f of many' 100000\n      while [ ! -e " + stop + " ]; do sleep 0.1; done\n  - id: end\n    script: echo the-end\n"
	c.Submit(file)
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.visit("#/builds/1")
	begin := time.Now()
	b.until(logReady(100_000))
	t.Logf("100,000 lines were there %v after the page was opened", time.Since(begin).Round(time.Millisecond))
	b.until(`document.querySelector(".log-sheet").innerText.includes("this is line 100000 of many")`) // it follows
	if n := value[int](b, `document.querySelectorAll(".line").length`); n > 200 {
		t.Errorf("%d lines are in the document", n)
	}
	// Through the log, a window's height and more at a time, and back to the end.
	worst := value[float64](b, `(async () => {
		const box = document.querySelector(".log");
		let worst = 0, last = performance.now();
		for (let i = 0; i < 100; i++) {
			box.scrollTop = i * 20000;
			await new Promise(requestAnimationFrame);
			await new Promise(requestAnimationFrame);
			const now = performance.now();
			worst = Math.max(worst, now - last);
			last = now;
			if (!document.querySelector(".line")) throw new Error("nothing is shown at " + i);
		}
		return worst;
	})()`)
	t.Logf("scrolling: the slowest of 100 jumps took %.0f ms", worst)
	b.until(`!document.querySelector(".log-bar input[type=checkbox]").checked`)
	b.eval(`(document.querySelector(".log").scrollTop = 50000 * 20)`)
	b.until(`document.querySelector(".log-sheet").innerText.includes("this is line 050000 of many")`)

	b.do("search", chromedp.SendKeys(`.finder input`, "LINE 0777"))
	b.until(`document.querySelector(".log-bar [role=status]").innerText === "1 of 100"`)
	b.until(`document.querySelector(".is-hit mark")?.innerText === "line 0777"`)
	b.do("search on", chromedp.SendKeys(`.finder input`, "\r"))
	b.until(`document.querySelector(".log-bar [role=status]").innerText === "2 of 100"`)
	b.until(`document.querySelector(".is-hit")?.innerText.includes("line 077701 of many")`)
	b.shot("search")
	b.do("no such text", chromedp.SendKeys(`.finder input`, " and nothing"))
	b.until(`document.querySelector(".log-bar [role=status]").innerText === "not found"`)

	size := value[int](b, `fetch("/page/builds/1/log.txt").then((r) => r.text()).then((text) => text.split("\n").filter((l) => /^this is line \d{6} of many$/.test(l)).length)`)
	if size != 100_000 {
		t.Errorf("%d lines were downloaded", size)
	}

	b.press("Cancel")
	b.until(`document.querySelector("h1").innerText.includes("cancelled")`)
	b.mu.Lock()
	if len(b.asked) != 1 || b.asked[0] != "Cancel build #1?" {
		t.Errorf("asked: %q", b.asked)
	}
	b.mu.Unlock()
	if err := os.WriteFile(stop, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.press("Run again")
	b.until(`document.querySelector("h1").innerText.includes("#2 long") && document.querySelector("h1").innerText.includes("succeeded")`)
	b.until(`document.querySelector(".log-sheet").innerText.includes("the-end")`)
	b.clean()
}

// TestPageShowsForeignTextsAsTexts: whatever agents, builds and logs say, the page shows it and does none of it.
func TestPageShowsForeignTextsAsTexts(t *testing.T) {
	t.Parallel()
	const evil = `<img src=x onerror="window.hit=1"><script>window.hit=2</script><svg onload=window.hit=3>"'` + "`${window.hit=4}"
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	identity := controllerCall[struct{ ID, Project, Secret string }](t, c, "POST", "/agents", map[string]any{"labels": []string{"javascript:alert"}})
	m := &wire.Client{Gateway: c.URL, Identity: wire.Identity{Project: identity.Project, Agent: identity.ID, Secret: wire.Secret(identity.Secret)}, HTTP: http.DefaultClient}
	if _, err := m.Startup(t.Context(), wire.Startup{HostName: evil, HostIP: evil, DetectOS: "linux", MasterVersion: evil}); err != nil {
		t.Fatal(err)
	}
	script := "cat <<'END'\n" + evil + "\n##[error]" + evil + "\nEND\nprintf '\\033]8;;javascript:window.hit=5\\007link\\033]8;;\\007 \\033]0;" + "title\\007\\033[31mred\\033[38;5;999999m\\033[;;;;m\\n'\n" +
		"printf 'a\\rb<b>\\r\\nsetEnv\\n\\342\\200\\256turned\\n'\nsetEnv V '" + strings.ReplaceAll(evil, "'", "") + "'\nexit 1\n"
	spec := map[string]any{"name": evil, "labels": []string{home.Property("devops.agent.id")}, "variables": map[string]string{"EVIL": evil}, "steps": []any{map[string]string{"name": evil, "script": script}}}
	controllerCall[map[string]any](t, c, "POST", "/builds", map[string]any{"spec": spec})
	controllerCall[map[string]any](t, c, "POST", "/builds", map[string]any{"spec": map[string]any{"name": evil, "labels": []string{"nowhere"}, "steps": spec["steps"]}})

	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	harmless := func(where string) {
		t.Helper()
		b.says(`<img src=x onerror="window.hit=1">`)
		if value[bool](b, `"hit" in window || !!document.querySelector("main img, main script, main a[href^='javascript'], main [onerror], main [onload]")`) {
			t.Errorf("%s: a text became something else", where)
		}
		b.fits(where)
	}
	b.visit("#/agents")
	harmless("agents")
	b.visit("#/agents/" + identity.ID)
	harmless("an agent")
	b.visit("#/builds/1")
	b.until(`document.querySelector("h1").innerText.includes("failed")`)
	b.until(`document.querySelector(".log-sheet").innerText.includes("link red")`)
	b.until(`["b<b>", "turned"].every((text) => [...document.querySelectorAll(".tx")].some((n) => n.textContent === text))`)
	b.until(`document.querySelector(".is-error")?.innerText.includes("<script>window.hit=2</script>")`)
	b.until(`document.querySelector(".line .f1")?.innerText === "red"`)
	b.press("Variables")
	harmless("a build")
	b.do("search", chromedp.SendKeys(`.finder input`, "<img"))
	b.until(`document.querySelectorAll("mark").length > 0`)
	harmless("a search")
	b.shot("build")
	b.visit("#/builds")
	b.until(`document.querySelectorAll("main tbody tr").length >= 2`)
	harmless("builds")
	b.visit("#/submit/1")
	b.until(`document.querySelector("main textarea")?.value.includes("<img src=x")`)
	if value[bool](b, `"hit" in window`) {
		t.Error("the form did something")
	}
	b.visit("#/builds/" + "%3Cimg%20src=x%20onerror=window.hit=6%3E")
	b.until(`document.querySelector("#note").innerText.includes("no such thing")`)
	if value[bool](b, `"hit" in window`) {
		t.Error("the address did something")
	}
	b.mu.Lock()
	for _, f := range b.faults { // the controller refuses a build that is not there
		if !strings.Contains(f, "404 (Not Found)") {
			t.Errorf("in the browser: %s", f)
		}
	}
	b.mu.Unlock()
}

// controllerCall calls the operator's API.
func controllerCall[T any](t *testing.T, c *lab.Controller, method, path string, in any) (out T) {
	t.Helper()
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, c.URL+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken(t, c))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(answer, &out)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %v: %s", method, path, resp.Status, err, answer)
	}
	return out
}

// axe runs axe-core over what is in view and fails on findings that are serious.
func (b *browser) axe(where, source string) {
	b.t.Helper()
	if source == "" {
		return
	}
	if !value[bool](b, `"axe" in window`) {
		if _, err := evaluate[bool](b, source+"\n;true"); err != nil {
			b.fail("axe", err)
		}
	}
	for _, found := range value[[]string](b, `axe.run(document, {resultTypes: ["violations"]}).then((r) => r.violations.filter((v) => ["serious", "critical"].includes(v.impact))
		.map((v) => v.id + ": " + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160) + " " + n.failureSummary.replace(/\s+/g, " ").slice(0, 300)).join(" | ")))`) {
		b.t.Errorf("axe: %s: %s", where, found)
	}
}

// colourful is the end of a script that prints what compilers do.
const colourful = `      for part in wire config proc job metrics agent controller worker; do
        printf '\033[1;36m[%s]\033[0m compiling \033[34mgithub.com/example/%s\033[0m ... \033[32mok\033[0m\n' "$(date +%T)" $part
      done
      echo '##[warning]controller/page.go:42: the comment is longer than the function'
      printf '\033[38;5;208m%s\033[0m %s\n' note: 'nothing has changed since the last build'
      printf '\033[7m %s \033[0m \033[1m%s\033[0m in \033[4m%s\033[0m\n' PASS '128 tests' '3.2 s'
`

// TestPageLooks: every view in both languages, dark and light, on a telephone and on a large screen: nothing is wider
// than the window, axe-core finds nothing serious, nothing goes wrong, and the keyboard gets everywhere.
func TestPageLooks(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p)
	home, _ := enrolled(t, c)
	release(t, c, "", "", "v9.0.0", map[string]string{"devopsAgent": p.Agent, "devopsDaemon": p.Daemon, "upgrader": p.Upgrader})
	for i, version := range []string{"v1.3.0", "v1.3.0", "v1.2.4"} { // three that say hello and no more
		record := controllerCall[struct{ ID, Project, Secret string }](t, c, "POST", "/agents", map[string]any{"labels": []string{"gpu"}})
		m := &wire.Client{Gateway: c.URL, Identity: wire.Identity{Project: record.Project, Agent: record.ID, Secret: wire.Secret(record.Secret)}, HTTP: http.DefaultClient}
		if _, err := m.Startup(t.Context(), wire.Startup{HostName: fmt.Sprintf("build-%02d", i+1), HostIP: "192.0.2.1", DetectOS: "linux", MasterVersion: version}); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"name: compile\nsteps:\n  - name: fetch\n    script: echo fetching\n  - name: compile everything with a rather long name of a step\n    script: |\n      seq 190\n" + colourful,
		"name: test\nsteps:\n  - name: unit\n    script: |\n      echo '##[error]one test failed'; exit 1\n  - name: never\n    script: echo\n",
	} {
		id := c.Submit(file)
		c.Over(time.Minute, id)
	}
	c.Submit("name: waits for a machine that does not exist\nlabels: [gpu, arm64]\nsteps:\n  - script: echo\n")
	if out, code := c.Run("", "upgrade", "offer", "v9.0.0", "--labels", "os=linux", "--canary", "2", "--window", "02:00-05:00"); code != 0 {
		t.Fatalf("offer: %s", out)
	}
	agent := home.Property("devops.agent.id")
	eachLook(t, c, agent, []pageView{
		{"#/agents", `document.querySelectorAll("main tbody tr").length === 4`},
		{"#/agents/" + agent, `!!document.querySelector("main figure") && document.querySelectorAll("main tbody tr").length === 2`},
		{"#/builds", `document.querySelectorAll("main tbody tr").length === 3`},
		{"#/builds/1", logReady(200)},
		{"#/submit", `!!document.querySelector("main textarea")`},
		{"#/submit/1", `document.querySelectorAll("main textarea").length === 2`},
		{"#/upgrades", `!!document.querySelector("main article") && document.querySelectorAll("main select option").length === 1`},
		{"#/upgrades/1", `!!document.querySelector("main article")`},
		{"#/enrol", `!!document.querySelector("main form")`},
	}, func(b *browser) {
		b.press("中文")
		b.until(`document.querySelector("h1").innerText === "添加机器" && document.documentElement.lang === "zh-CN"`)
		b.press("English")
		b.until(`document.querySelector("h1").innerText === "Add machines"`)
		b.keyboard("#/builds/1", logReady(200))
	})
}

// pageView is a view of the page, and what is true when it is there.
type pageView struct{ hash, ready string }

// eachLook opens views in all looks, and looks at each of them. id is left out of the names of pictures; more is done
// once, in the first look, which is that of an English telephone.
func eachLook(t *testing.T, c *lab.Controller, id string, views []pageView, more func(*browser)) {
	t.Helper()
	source := ""
	if path := os.Getenv("LAB_AXE"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		source = string(data)
	} else {
		t.Log("without axe-core: LAB_AXE says where it is, and lab/run page fetches it")
	}
	for i, how := range []look{{width: 360, language: "en-US"}, {width: 1440, language: "zh-CN", dark: true}, {width: 360, language: "zh-CN", dark: true}, {width: 1440, language: "en-US"}} {
		name := fmt.Sprintf("%d-%s-dark=%t", how.width, how.language, how.dark)
		t.Run(name, func(t *testing.T) {
			b := newBrowser(t, c.URL, how)
			b.do("open", chromedp.Navigate(b.base+"/"), chromedp.WaitVisible(`form.door input`))
			b.axe("the door", source)
			b.fits("the door")
			b.do("sign in", chromedp.SendKeys(`form.door input`, operatorToken(t, c)+"\r"), chromedp.WaitVisible(`#nav`))
			for _, v := range views {
				b.visit(v.hash)
				b.until(v.ready)
				b.fits(v.hash)
				b.axe(v.hash, source)
				b.shot(strings.Trim(strings.ReplaceAll(strings.ReplaceAll(v.hash, "/", "-"), id, "one"), "#-"))
				chinese := value[bool](b, `/[\u4e00-\u9fff]/.test(document.querySelector("nav").innerText)`)
				if chinese != (how.language == "zh-CN") || value[string](b, `document.documentElement.lang`)[:2] != how.language[:2] {
					t.Errorf("%s is not in %s", v.hash, how.language)
				}
			}
			light := value[bool](b, `getComputedStyle(document.body).backgroundColor.match(/\d+/g).every((n) => Number(n) > 128)`)
			if light == how.dark {
				t.Errorf("dark is %t", !light)
			}
			if i == 0 {
				more(b)
			}
			b.press(map[string]string{"en-US": "Sign out", "zh-CN": "退出登录"}[how.language])
			b.until(`!!document.querySelector("form.door input") && document.querySelector("#nav").hidden`)
			b.clean()
		})
	}
}

// keyboard walks through a view by the tab key: everything that can be pressed gets the focus, and shows it.
func (b *browser) keyboard(hash, ready string) {
	b.t.Helper()
	b.visit(hash)
	b.until(ready)
	want := value[int](b, `[...document.querySelectorAll("a, button, input, select, textarea, summary, .log")].filter((n) => n.offsetParent !== null && !n.disabled).length`)
	b.eval(`document.body.focus(), window.seen = new Set(), window.dull = []`)
	for range want + 5 {
		b.do("tab", chromedp.KeyEvent("\t"))
		b.eval(`((n) => { if (n && n !== document.body) { seen.add(n); if (n.id !== "main" && getComputedStyle(n).outlineStyle === "none") dull.push(n.outerHTML.slice(0, 80)); } })(document.activeElement)`)
	}
	if got := value[int](b, `seen.size`); got < want {
		b.t.Errorf("the tab key comes to %d of %d", got, want)
	}
	if dull := value[[]string](b, `dull`); len(dull) > 0 {
		b.t.Errorf("the focus cannot be seen on %v", dull)
	}
}

// TestPageRollsOutAndBack: three real agents; the page offers them a version that is bad, the canary takes it back, the
// rollout halts, and the page rolls it back; then it offers a good one to all.
func TestPageRollsOutAndBack(t *testing.T) {
	t.Parallel()
	next, err := nextPrograms()
	if err != nil {
		t.Fatal(err)
	}
	p := programs(t)
	c := lab.NewController(t, p)
	for range 3 {
		home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL, Mode: "auto"})
		home.Remove(".agent.properties")
		for name, program := range map[string]string{"devopsDaemon": p.Daemon, "upgrader": p.Upgrader, "tmp/upgrader": p.Upgrader} {
			if out, err := exec.Command("cp", "--remove-destination", program, home.Path(name)).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		home.Write("agent.toml", "[upgrade]\nsettle_after = \"0s\"\n")
		token, code := c.Run("", "enroll-token")
		if code != 0 {
			t.Fatal("no token")
		}
		enroll := exec.Command(home.Path("devopsAgent"), "enroll", "--gateway", c.URL, "--home", home.Dir)
		enroll.Stdin = strings.NewReader(token)
		if out, err := enroll.CombinedOutput(); err != nil {
			t.Fatalf("enroll: %v\n%s", err, out)
		}
		if err := os.WriteFile(home.LabPath("mode"), []byte("exit 1"), 0o644); err != nil { //nolint:gosec // no secret
			t.Fatal(err)
		}
		home.StartProgram(home.Path("devopsDaemon"), "/", nil, "DEVOPS_TRIAL_PATIENCE=20s")
	}
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.says("3 of 3 online")
	b.visit("#/upgrades")
	b.says("devopsController upgrade add")
	release(t, c, "", "", "v10.0.0", map[string]string{"devopsAgent": next.bad, "devopsDaemon": next.daemon, "upgrader": next.upgrader})
	b.until(`document.querySelector("main select")?.value === "v10.0.0"`)
	b.press("Offer it")
	b.until(`document.querySelector("h1").innerText === "Rollout 1"`)
	b.says("trying it on canaries")
	b.within(3*time.Minute, `document.querySelector("main").innerText.includes("halted")`)
	b.says("1 failed")
	b.shot("halted")
	b.press("Roll back")
	b.within(3*time.Minute, `document.querySelector("main").innerText.includes("rolled back")`)

	release(t, c, "", "", nextVersion, map[string]string{"devopsAgent": next.agent, "devopsDaemon": next.daemon, "upgrader": next.upgrader})
	b.visit("#/upgrades")
	b.until(`[...document.querySelectorAll("main select option")].some((o) => o.value === "` + nextVersion + `")`)
	b.eval(`(document.querySelector("main select").value = "` + nextVersion + `")`)
	b.press("Offer it")
	b.until(`document.querySelector("h1").innerText === "Rollout 2"`)
	b.within(3*time.Minute, `document.querySelector("main").innerText.includes("3 of 3 have it")`)
	b.shot("done")
	b.clean()
}

// TestPageForAReader: a read-only session sees everything and has nothing to change it with.
func TestPageForAReader(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	c.Submit("labels: [nowhere]\nsteps:\n  - script: echo\n")
	controllerCall[map[string]any](t, c, "PUT", "/secrets/KEY", map[string]any{"value": "swordfish"})
	controllerCall[map[string]any](t, c, "POST", "/definitions", map[string]any{"file": "name: nightly\nlabels: [nowhere]\nwebhook: {secret: KEY, variables: {REF: ref}}\nsteps:\n  - script: echo of-the-script\n"})
	controllerCall[map[string]any](t, c, "POST", "/definitions/nightly/trigger", map[string]any{})
	token := controllerCall[struct{ Token, ID string }](t, c, "POST", "/tokens", map[string]any{"name": "wall"})
	b := newBrowser(t, c.URL, look{})
	b.signIn(token.Token)
	b.says("You may look at everything and change nothing.")
	b.says("An operator can add one.")
	b.visit("#/builds/1")
	b.until(`document.querySelector("h1").innerText.includes("queued")`)
	b.visit("#/upgrades")
	b.says("No rollout yet.")
	if left := value[[]string](b, `[...document.querySelectorAll("nav a")].map((n) => n.innerText)`); strings.Join(left, " ") != "Agents Builds Runs Definitions Secrets Upgrades" {
		t.Errorf("the reader gets %v", left)
	}
	b.visit("#/builds/1")
	b.until(`document.querySelector("h1").innerText.includes("queued")`)
	if value[bool](b, `[...document.querySelectorAll("main button, main a.button")].some((n) => n.offsetParent !== null && ["Cancel", "Run again", "Change and run"].includes(n.innerText.trim()))`) {
		t.Error("the reader gets buttons that change something")
	}
	for _, v := range []pageView{
		{"#/runs", `document.querySelectorAll("main tbody tr").length === 1`}, {"#/runs/1", `document.querySelectorAll(".job").length === 1`},
		{"#/definitions", `document.querySelectorAll("main tbody tr").length === 1`}, {"#/definitions/demo/nightly", `document.querySelectorAll("main tbody tr").length === 1`},
		{"#/secrets", `document.querySelectorAll("main tbody tr").length === 1`},
	} {
		b.visit(v.hash)
		b.until(v.ready)
		if left := value[[]string](b, `[...document.querySelectorAll("main button, main a.button, main form, main pre")].filter((n) => n.offsetParent !== null && !n.matches(".copy")).map((n) => n.innerText)`); len(left) > 0 {
			t.Errorf("%s: the reader gets %q", v.hash, left)
		}
	}
	b.visit("#/access")
	b.says("Only operators see and change who may do what")
	if value[bool](b, `!!document.querySelector("main button, main table, main form")`) {
		t.Error("the reader gets more than a sentence about tokens")
	}
	if code := value[int](b, `fetch("/page/api/builds/1/cancel", {method: "POST", headers: {"X-DEVOPS-PAGE": "1"}}).then((r) => r.status)`); code != 403 {
		t.Errorf("the reader's cancel: %d", code)
	}
	controllerCall[map[string]any](t, c, "DELETE", "/tokens/"+token.ID, nil)
	b.until(`!!document.querySelector("form.door input")`)
}
