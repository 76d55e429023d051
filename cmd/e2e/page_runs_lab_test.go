//go:build lab && linux

package e2e

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// pipelineFile is a build file whose jobs wait for each other, one of them for a file that ends it.
func pipelineFile(wait string) string {
	return `name: nightly
labels: [linux]
jobs:
  build:
    steps:
      - {id: make, name: compile, script: 'echo "::set-output name=version::1.2.3"'}
  lint:
    steps:
      - script: echo clean
  test:
    needs: build
    matrix: {go: ["1.25", "1.26"], os: [debian, fedora]}
    steps:
      - name: unit tests with ${{ matrix.go }}
        script: while [ ! -e ` + wait + ` ]; do sleep 0.1; done; echo ${{ jobs.build.steps.make.outputs.version }}
  package:
    needs: [test, lint]
    steps:
      - script: echo packed
  tell:
    needs: [build, test, package]
    always: true
    steps:
      - script: echo the tests have ${{ jobs.test.result }}
`
}

// stateOfJob is an expression for the state of a job that the page shows.
func stateOfJob(job, state string) string {
	return `[...document.querySelectorAll(".job")].find((n) => n.querySelector("h3").innerText.startsWith("` + job + `"))?.querySelector(".state")?.innerText === "` + state + `"`
}

// write replaces the text of the field for build files.
func (b *browser) write(text string) {
	b.t.Helper()
	b.until(`!!document.querySelector("main textarea")`)
	b.do("empty the field", chromedp.SetValue("main textarea", text))
}

// expect waits for a refusal of the controller, and takes what the browser says of it from its faults.
func (b *browser) expect(code string) {
	b.t.Helper()
	b.until(`!!document.querySelector("main .alert:not(:empty)")`)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = slices.DeleteFunc(b.faults, func(f string) bool { return strings.Contains(f, code) })
}

// TestPageRuns: a build file with an error is refused with its line and what to do; mended, it becomes a run whose jobs
// are seen waiting for each other, and that is cancelled, changed, and run again.
func TestPageRuns(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	wait := home.LabPath("go-on")
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.visit("#/runs")
	b.says("No run yet")
	b.press("Submit a build file")
	file := pipelineFile(wait)
	b.write(strings.Replace(file, "needs: build\n", "needs: biuld\n", 1))
	b.press("Submit")
	b.expect("400 (Bad Request)")
	b.says(`line 11: job test needs "biuld", which is no job of this file`)
	b.says("Hint: keys of a build")
	if marked := value[string](b, `((n) => n.value.slice(n.selectionStart, n.selectionEnd))(document.querySelector("main textarea"))`); marked != "    needs: biuld" {
		t.Errorf("marked: %q", marked)
	}
	b.shot("error")
	b.write(file)
	b.press("Submit")
	b.says("Run 1 nightly")
	b.until(stateOfJob("build", "succeeded") + " && " + stateOfJob("tell", "waiting"))
	b.until(`document.querySelectorAll(".edge").length === 4 && document.querySelectorAll(".edge.good").length >= 1`)
	if names := value[[]string](b, `[...document.querySelectorAll(".cells a")].map((n) => n.innerText)`); strings.Join(names, "; ") != "go=1.25, os=debian; go=1.25, os=fedora; go=1.26, os=debian; go=1.26, os=fedora" {
		t.Errorf("cells: %q", names)
	}
	b.until(`[...document.querySelectorAll(".cells .state")].some((n) => n.innerText === "running")`)
	b.shot("running")
	if err := os.WriteFile(wait, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.until(stateOfJob("tell", "succeeded") + ` && document.querySelector("h1").innerText.endsWith("succeeded")`)
	b.eval(`document.querySelector(".cells a").click()`)
	b.says("nightly/test (1.25, debian)")
	b.says("1.2.3")
	b.eval(`[...document.querySelectorAll("main dd a")].find((n) => n.innerText === "1: test").click()`)
	b.says("Run 1 nightly")

	if err := os.Remove(wait); err != nil {
		t.Fatal(err)
	}
	b.press("Run again")
	b.says("Run 2 nightly")
	b.until(stateOfJob("build", "succeeded"))
	b.press("Cancel")
	b.until(`document.querySelector("h1").innerText.endsWith("cancelled")`)
	b.press("Change and run")
	b.until(`document.querySelector("main textarea")?.value.includes("name: nightly")`)
	b.write("name: short\nsteps:\n  - script: echo done; exit 3\n")
	b.press("Submit")
	b.says("Run 3 short")
	b.until(`document.querySelector("h1").innerText.endsWith("failed")`)
	b.press("Runs")
	b.until(`document.querySelectorAll("main tbody tr").length === 3`)
	b.says("8 succeeded")
	b.shot("list")
	b.clean()
}

// TestPageDefinitionsAndSecrets: a secret and a definition are made on the page, started, changed and deleted. The value
// is nowhere to be seen. Without the key file the page says what to do.
func TestPageDefinitionsAndSecrets(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	enrolled(t, c)
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.visit("#/secrets")
	b.says("No secret yet")
	const secret = "swordfish-in-two\nlines"
	b.do("name", chromedp.SetValue(`main input[placeholder=DEPLOY_KEY]`, "HOOK_KEY"), chromedp.SetValue("main textarea", secret))
	b.press("Set it")
	b.says("HOOK_KEY is set")
	b.until(`document.querySelectorAll("main tbody tr").length === 1`)
	if value[bool](b, `document.documentElement.outerHTML.includes("swordfish") || [...document.querySelectorAll("input, textarea")].some((n) => n.value.includes("swordfish"))`) {
		t.Error("the value can still be seen")
	}
	b.do("load the page again", chromedp.Reload())
	b.until(`document.querySelector("main form")?.offsetParent != null && document.querySelectorAll("main td button").length === 2`)

	b.press("Definitions")
	b.says("No definition yet")
	b.press("New definition")
	at := halfADayAway()
	file := "name: deploy\nschedule: {cron: \"" + at + "\", timezone: Europe/Berlin}\nwebhook:\n  secret: HOOK_KEY\n  variables: {REF: ref}\nbadge: public\n" +
		"variables:\n  PASSWORD: {value: hunter-two, sensitive: true}\nsteps:\n  - script: echo \"ref is <$REF>\"\n"
	b.write(strings.Replace(file, at, "0 33 * * *", 1))
	b.press("Store")
	b.expect("400 (Bad Request)")
	b.says("line 2:")
	b.write(file)
	b.press("Store")
	b.says("It has not run yet.")
	b.says("/hooks/demo/deploy")
	b.says("![deploy](")
	b.says("Europe/Berlin")
	b.until(`document.querySelector("main img").naturalWidth > 0`)
	b.until(`document.querySelector("pre.file").innerText.includes("******")`)
	b.press("Values that the webhook would bring")
	b.do("value", chromedp.SendKeys("main details input", "main'; exit 1"))
	b.press("Run now")
	b.says("Run 1 deploy")
	b.until(`document.querySelector("h1").innerText.endsWith("succeeded")`)
	b.press("job")
	b.says("ref is <main'; exit 1>")
	b.press("Definitions")
	b.until(`document.querySelector("main tbody")?.innerText.includes("succeeded")`)
	b.shot("list")
	b.press("deploy")
	b.until(`document.querySelectorAll("main tbody tr").length === 1`)
	b.shot("one")
	t.Run("called by hand", func(t *testing.T) {
		for _, program := range []string{"curl", "python3"} {
			if _, err := exec.LookPath(program); err != nil {
				t.Skip("needs " + program)
			}
		}
		command := exec.Command("bash", "-c", strings.Replace(value[string](b, `document.querySelector("main section details code").textContent`), "'…'", "'"+secret+"'", 1))
		command.Dir = t.TempDir()
		if out, err := command.CombinedOutput(); err != nil || !strings.Contains(string(out), `"repeated":false`) {
			t.Errorf("%v %s", err, out)
		}
		b.until(`document.querySelectorAll("main tbody tr").length === 2`)
		b.says("by its webhook")
	})
	b.press("Change")
	b.until(`document.querySelector("main textarea")?.value.includes("******")`)
	b.says("Sensitive values are not shown")
	b.press("Store")
	b.expect("400 (Bad Request)")
	b.says("****** stands for a value that is not shown")
	b.write("name: deploy\nwebhook: {secret: OTHER_KEY}\nsteps:\n  - script: echo\n")
	b.press("Store")
	b.says("Nobody can call it: the secret OTHER_KEY is not set.")

	c.Kill()
	if err := os.Rename(filepath.Join(c.Data, "secrets.key"), filepath.Join(c.Data, "key.away")); err != nil {
		t.Fatal(err)
	}
	c.Start()
	b = newBrowser(t, c.URL, look{width: 360})
	b.signIn(operatorToken(t, c))
	b.visit("#/secrets")
	b.says("Secrets are locked")
	b.says("Hint: put back the key file " + filepath.Join(c.Data, "secrets.key"))
	b.fits("the locked secrets")
	b.shot("locked")
	b.visit("#/submit/file")
	b.write("secrets: [HOOK_KEY]\nsteps:\n  - script: echo\n")
	b.press("Submit")
	b.expect("503 (Service Unavailable)")
	b.says("Hint: put back the key file")
	b.visit("#/definitions/demo/deploy")
	b.press("Delete")
	b.says("No definition yet")
	b.clean()
}

// TestPageShowsForeignTextsOfRunsAsTexts: names of runs, values of a matrix, build files and errors are texts on the
// page, and nothing else. Names of jobs, definitions and secrets cannot have markup in them: the controller refuses it.
func TestPageShowsForeignTextsOfRunsAsTexts(t *testing.T) {
	t.Parallel()
	const evil = `<img src=x onerror="window.hit=1"><script>window.hit=2</script>`
	c := lab.NewController(t, programs(t))
	quoted := strconv.Quote(evil)
	file := "name: " + quoted + "\nlabels: [nowhere]\njobs:\n  a:\n    matrix: {branch: [" + quoted + ", 'javascript:window.hit=3']}\n    steps:\n      - {name: " + quoted + ", script: " + quoted + "}\n" +
		"  b:\n    needs: a\n    steps: [{script: x}]\n"
	controllerCall[map[string]any](t, c, "POST", "/runs", map[string]any{"file": file})
	controllerCall[map[string]any](t, c, "PUT", "/secrets/KEY", map[string]any{"value": evil})
	controllerCall[map[string]any](t, c, "POST", "/definitions", map[string]any{"file": "name: d\nwebhook: {secret: KEY, variables: {REF: " + quoted + "}}\nbadge: public\nlabels: [nowhere]\n" +
		"# " + evil + "\nsteps:\n  - {name: " + quoted + ", script: " + quoted + "}\n"})
	controllerCall[map[string]any](t, c, "POST", "/definitions/d/trigger", map[string]any{"inputs": map[string]string{"REF": evil}}) // a branch
	controllerCall[map[string]any](t, c, "POST", "/enroll-tokens", map[string]any{"note": evil})
	b := newBrowser(t, c.URL, look{width: 360})
	b.signIn(operatorToken(t, c))
	harmless := func(where string) {
		t.Helper()
		if value[bool](b, `"hit" in window || !!document.querySelector("main img[src=x], main script, main a[href^='javascript'], main [onerror], main [onload]")`) {
			t.Errorf("%s: a text became something else", where)
		}
		b.fits(where)
	}
	const there = `document.querySelector("main").innerText.includes("<img src=x onerror=")`
	for _, v := range []pageView{
		{"#/runs", there}, {"#/runs/1", there + ` && document.querySelectorAll(".cells a").length === 2`}, {"#/submit/run/1", `document.querySelector("main textarea").value.includes("<img src=x")`},
		{"#/runs/2", `document.querySelectorAll(".job").length === 1`}, {"#/builds/1", there}, {"#/definitions/demo/d", there + ` && !!document.querySelector("main img[alt]")`},
		{"#/define/demo/d", `document.querySelector("main textarea").value.includes("<img src=x")`}, {"#/secrets", `document.querySelectorAll("main tbody tr").length === 1`}, {"#/access", there + ` && document.querySelector("main section").innerText.includes("<img src=x")`},
	} {
		b.visit(v.hash)
		b.until(v.ready)
		b.shot(strings.Trim(strings.ReplaceAll(v.hash, "/", "-"), "#-"))
		harmless(v.hash)
	}
	b.visit("#/submit/file")
	for _, bad := range []string{evil + ": x\n", "jobs:\n  " + quoted + ":\n    steps: [{script: x}]\n", "name: x\njobs:\n  a:\n    needs: " + quoted + "\n    steps: [{script: x}]\n"} {
		b.write(bad)
		b.press("Submit")
		b.expect("400 (Bad Request)")
		b.until(`document.querySelector("main .alert").innerText.includes("<img src=x")`)
		harmless("an error")
	}
	for _, path := range []string{"#/runs/" + url.PathEscape(evil), "#/definitions/" + url.PathEscape(evil) + "/" + url.PathEscape(evil)} {
		b.visit(path)
		b.until(`document.querySelector("#note").innerText.includes("no such thing")`)
		harmless(path)
	}
	if code := value[int](b, `fetch("/page/api/tokens/" + encodeURIComponent("<img src=x onerror=window.hit=4>"), {method: "DELETE", headers: {"X-DEVOPS-PAGE": "1"}}).then((r) => r.status)`); code != 404 {
		t.Errorf("a token that is not there: %d", code)
	}
	b.visit("#/access")
	b.says("<img src=x onerror=window.hit=4>") // in the audit log
	harmless("the audit log")
	b.mu.Lock()
	b.faults = slices.DeleteFunc(b.faults, func(f string) bool { return strings.Contains(f, "404 (Not Found)") }) // there is no such run
	b.mu.Unlock()
	b.clean()
}

// halfADayAway is a daily schedule that does not come while a test runs, wherever in Europe or UTC.
func halfADayAway() string { return fmt.Sprintf("0 %d * * *", (time.Now().UTC().Hour()+12)%24) }

// TestPageLooksOfRuns: the views of runs, definitions and secrets, with much in them, in all looks.
func TestPageLooksOfRuns(t *testing.T) {
	t.Parallel()
	c := lab.NewController(t, programs(t))
	home, _ := enrolled(t, c)
	wait := home.LabPath("go-on")
	if err := os.WriteFile(wait, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"DEPLOY_KEY", "HOOK_KEY", "A_SECRET_WITH_A_RATHER_LONG_NAME_THAT_HAS_TO_FIT_ONTO_A_TELEPHONE"} {
		controllerCall[map[string]any](t, c, "PUT", "/secrets/"+name, map[string]any{"value": "something"})
	}
	for _, file := range []string{
		"name: deploy\nschedule: {cron: \"" + halfADayAway() + "\", timezone: Europe/Berlin}\nwebhook:\n  secret: HOOK_KEY\n  variables: {REF: ref, AUTHOR: head_commit.author.name}\nbadge: public\nsecrets: [DEPLOY_KEY]\nsteps:\n  - script: ./deploy.sh \"$REF\"\n",
		"name: a-definition-with-a-rather-long-name-that-has-to-fit\nschedule: \"" + halfADayAway() + "\"\nsecrets: [DEPLOY_KEY]\nsteps:\n  - script: echo\n",
	} {
		controllerCall[map[string]any](t, c, "POST", "/definitions", map[string]any{"file": file})
	}
	over := func(id string) {
		t.Helper()
		if !lab.Eventually(2*time.Minute, func() bool {
			return controllerCall[struct{ FinishedAt int64 }](t, c, "GET", "/runs/"+id, nil).FinishedAt != 0
		}) {
			t.Fatalf("run %s does not end", id)
		}
	}
	controllerCall[map[string]any](t, c, "POST", "/runs", map[string]any{"file": pipelineFile(wait)})
	over("1")
	controllerCall[map[string]any](t, c, "POST", "/runs", map[string]any{"file": strings.Replace(pipelineFile(wait), "echo packed", "echo no room left; exit 1", 1)})
	over("2")
	controllerCall[map[string]any](t, c, "POST", "/definitions/deploy/trigger", map[string]any{})
	over("3")
	controllerCall[map[string]any](t, c, "POST", "/runs", map[string]any{"file": "name: waits\nlabels: [nowhere]\njobs:\n  first-job-with-a-long-name:\n    matrix: {system: [debian-13-amd64, debian-13-arm64, fedora-43-amd64]}\n    steps: [{script: x}]\n" +
		"  second:\n    needs: first-job-with-a-long-name\n    steps: [{script: x}]\n  third:\n    needs: second\n    steps: [{script: x}]\n  fourth: {needs: [third, second], steps: [{script: x}]}\n  fifth: {needs: fourth, steps: [{script: x}]}\n  sixth: {needs: fifth, steps: [{script: x}]}\n"})
	var ended struct{ ID string }
	for _, token := range []map[string]any{
		{"note": "the machines of the second rack in the cellar, until they are all there", "labels": []string{"gpu", "berlin"}, "uses": 5},
		{"project": "website", "expires": 600}, {"note": "lost", "uses": 1},
	} {
		ended = controllerCall[struct{ ID string }](t, c, "POST", "/enroll-tokens", token)
	}
	controllerCall[map[string]any](t, c, "DELETE", "/enroll-tokens/"+ended.ID, nil)
	for _, token := range []map[string]any{{"name": "wall-screen"}, {"name": "a.token.with.a.rather.long.name.that.has.to.fit.onto.a.telephone", "role": "operator", "expires": 86400}} {
		controllerCall[map[string]any](t, c, "POST", "/tokens", token)
	}
	rows := func(n int) string { return fmt.Sprintf(`document.querySelectorAll("main tbody tr").length === %d`, n) }
	eachLook(t, c, "demo", []pageView{
		{"#/runs", rows(4)},
		{"#/runs/2", `document.querySelectorAll(".job").length === 5 && document.querySelectorAll(".cells li").length === 4`},
		{"#/runs/4", `document.querySelectorAll(".job").length === 6`},
		{"#/definitions", rows(2)},
		{"#/definitions/demo/deploy", rows(1) + ` && document.querySelector("main img")?.complete`},
		{"#/define", `!!document.querySelector("main textarea")`},
		{"#/define/demo/deploy", `document.querySelector("main textarea")?.value.length > 10`},
		{"#/secrets", rows(3)},
		{"#/submit/file", `!!document.querySelector("main textarea")`},
		{"#/agents", rows(1)},
		{"#/access", `[...document.querySelectorAll("main tbody")].map((n) => Math.min(n.children.length, 9)).join(" ") === "3 0 2 0 9"`},
	}, func(b *browser) {
		b.keyboard("#/access", `document.querySelectorAll("main .danger").length === 5`)
		b.keyboard("#/runs/2", `document.querySelectorAll(".job").length === 5`)
		b.visit("#/agents") // a telephone sorts by a list instead of the row of columns
		b.until(rows(1))
		b.until(`document.querySelector(".narrow select").offsetParent !== null`)
		b.eval(`((n) => { n.value = "version"; n.dispatchEvent(new Event("change")); })(document.querySelector(".narrow select"))`)
		b.until(`!document.querySelector(".narrow button").disabled && document.querySelector("th[aria-sort=ascending]")?.innerText.startsWith("Version")`)
		b.press("↑")
		b.until(`document.querySelector("th[aria-sort=descending]")?.innerText.startsWith("Version")`)
	})
}
