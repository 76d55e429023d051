//go:build lab && linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// browser is a tab of a real Chromium that notes what goes wrong in it: errors in the console, exceptions that nobody
// caught, dialogs that nobody asked for, and what the content security policy refused.
type browser struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu     sync.Mutex
	faults []string
	asked  []string // dialogs; all are answered with yes

	answers sync.WaitGroup
}

// look is how a browser shows a page.
type look struct {
	width    int64 // pixels, 1280 when 0
	language string
	dark     bool
}

// newBrowser starts a Chromium, or skips the test where there is none.
func newBrowser(t *testing.T, base string, how look) *browser {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			program = path
			break
		}
	}
	if program == "" {
		t.Skip("needs Chromium: apt-get install chromium")
	}
	if how.width == 0 {
		how.width = 1280
	}
	if how.language == "" {
		how.language = "en-US"
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("lang", how.language), chromedp.Flag("disable-dev-shm-usage", true), chromedp.WindowSize(int(how.width), 900))
	ctx, stop := context.WithTimeout(t.Context(), 9*time.Minute)
	t.Cleanup(stop)
	ctx, stopAll := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(stopAll)
	ctx, closeTab := chromedp.NewContext(ctx)
	t.Cleanup(closeTab)
	b := &browser{t: t, ctx: ctx, base: base}
	t.Cleanup(b.answers.Wait)
	if err := chromedp.Listen(ctx, b.heard); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	scheme := "light"
	if how.dark {
		scheme = "dark"
	}
	// What a visitor's settings are.
	send(b, log.Enable, cdp.Empty{})
	send(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	send(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: how.width, Height: 900, DeviceScaleFactor: 1})
	agent, err := chromedp.Run(ctx, chromedp.Evaluate[string]("navigator.userAgent"))
	if err != nil {
		t.Fatalf("ask %s: %v", program, err)
	}
	send(b, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: agent, AcceptLanguage: how.language})
	return b
}

// send sends a command to the tab.
func send[P, R any](b *browser, command cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.t.Fatalf("%s: %v", command.Method, err)
	}
}

func (b *browser) heard(event any) {
	fault := ""
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text, _ := json.Marshal(e.ExceptionDetails)
		fault = "exception: " + string(text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning || e.Type == runtime.ConsoleAPICalledTypeAssert {
			text, _ := json.Marshal(e.Args)
			fault = "console: " + string(text)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			fault = fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	case *cdppage.EventJavascriptDialogOpening:
		b.mu.Lock()
		b.asked = append(b.asked, e.Message)
		b.mu.Unlock()
		b.answers.Go(func() { // the tab waits for it, and this for the tab
			_, _ = chromedp.Call(b.ctx, cdppage.HandleJavaScriptDialog, cdppage.HandleJavaScriptDialogParams{Accept: true})
		})
	}
	// Signing in begins with a call that is refused.
	if fault != "" && !strings.Contains(fault, "401 (Unauthorized)") {
		b.mu.Lock()
		b.faults = append(b.faults, fault)
		b.mu.Unlock()
	}
}

// clean fails the test if something went wrong in the browser.
func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Errorf("in the browser: %s", f)
	}
}

func (b *browser) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, stop := context.WithTimeout(b.ctx, 2*time.Minute)
	defer stop()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.fail(what, err)
	}
}

// fail ends the test with all that is known of the tab.
func (b *browser) fail(what string, err error) {
	b.t.Helper()
	b.shot("failed")
	text, _ := evaluate[string](b, `document.body ? document.body.innerText : ""`)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.t.Fatalf("%s: %v\n%s\n%s", what, err, strings.Join(b.faults, "\n"), text)
}

func evaluate[T any](b *browser, expression string) (T, error) {
	ctx, stop := context.WithTimeout(b.ctx, 2*time.Minute)
	defer stop()
	return chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// value is what an expression has.
func value[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := evaluate[T](b, expression)
	if err != nil {
		b.fail(expression, err)
	}
	return v
}

// eval runs a script whose value does not matter.
func (b *browser) eval(script string) {
	b.t.Helper()
	value[bool](b, "("+script+", true)")
}

// until waits for an expression to become true.
func (b *browser) until(expression string) {
	b.t.Helper()
	b.within(2*time.Minute, expression)
}

// within is until with a limit. What cannot be evaluated yet is not true.
func (b *browser) within(limit time.Duration, expression string) {
	b.t.Helper()
	if !lab.Eventually(limit, func() bool {
		return value[bool](b, "(() => { try { return !!("+expression+") } catch { return false } })()")
	}) {
		b.fail(expression, fmt.Errorf("is not true after %v", limit))
	}
}

// says waits until the page shows a text.
func (b *browser) says(text string) {
	b.t.Helper()
	b.until(fmt.Sprintf(`document.body.innerText.includes(%q)`, text))
}

// shot keeps a picture where PAGE_SHOTS says.
func (b *browser) shot(name string) {
	dir := os.Getenv("PAGE_SHOTS")
	if dir == "" {
		return
	}
	ctx, stop := context.WithTimeout(b.ctx, 20*time.Second)
	defer stop()
	if data, err := chromedp.Run(ctx, chromedp.FullScreenshot(100)); err == nil {
		_ = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png"), data, 0o600)
	}
}

// visit goes to a view.
func (b *browser) visit(hash string) {
	b.t.Helper()
	b.eval(fmt.Sprintf(`location.hash = %q`, hash))
	b.until(`!!document.querySelector("main h1")`)
}

// operatorToken reads the token of a controller.
func operatorToken(t *testing.T, c *lab.Controller) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.Data, "operator.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// signIn opens the page and signs in.
func (b *browser) signIn(token string) {
	b.t.Helper()
	b.do("sign in", chromedp.Navigate(b.base+"/"), chromedp.WaitVisible(`form.door input`), chromedp.SendKeys(`form.door input`, token+"\r"), chromedp.WaitVisible(`#nav`))
}

// press clicks the button or link with a text.
func (b *browser) press(text string) {
	b.t.Helper()
	find := fmt.Sprintf(`[...document.querySelectorAll("button, a, summary")].find((n) => n.innerText.trim() === %q && !n.disabled && n.offsetParent !== null)`, text)
	b.until("!!" + find)
	b.eval(find + ".click()")
}

// fits fails when the page is wider than the window.
func (b *browser) fits(where string) {
	b.t.Helper()
	wide := value[[]string](b, `document.documentElement.scrollWidth <= innerWidth ? [] : [document.documentElement.scrollWidth + " px", ...[...document.querySelectorAll("body *")]
		.filter((n) => n.getBoundingClientRect().right > innerWidth + 1 && !n.closest(".log")).slice(0, 5).map((n) => n.outerHTML.slice(0, 120))]`)
	if len(wide) > 0 {
		b.t.Errorf("%s is wider than the window: %v", where, wide)
	}
}

// TestPageFromNothingToAGreenBuild does what a new operator does: sign in, copy the command that the empty page shows,
// and submit a build.
func TestPageFromNothingToAGreenBuild(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p)
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.says("Add the first machine")
	b.until(`!!document.querySelector(".empty .command code")`)
	b.shot("empty")
	b.fits("the empty page")
	command := value[string](b, `document.querySelector(".empty .command code").innerText`)

	home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL})
	home.Remove(".agent.properties")
	shell := exec.Command("sh", "-c", command)
	shell.Dir = home.Dir
	out, err := os.Create(filepath.Join(t.TempDir(), "agent.out"))
	if err != nil {
		t.Fatal(err)
	}
	shell.Stdout, shell.Stderr = out, out
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command(home.Path("devopsAgent"), "stop", "--now").Run()
		_ = shell.Process.Kill()
		_ = shell.Wait()
		_ = out.Close()
	})
	b.says("online")
	b.shot("agents")

	b.press("New build")
	b.until(`!!document.querySelector("main textarea")`)
	b.eval(`document.querySelector("main textarea").value = "echo hello; printf '\\033[32mgreen\\033[0m\\n'; echo value=$MODE"`)
	b.press("Add a variable")
	b.do("variable", chromedp.SendKeys(`.var input:nth-of-type(1)`, "MODE"), chromedp.SendKeys(`.var input:nth-of-type(2)`, "fast"))
	b.shot("submit")
	b.press("Submit")
	b.says("value=fast")
	b.says("succeeded")
	b.until(`document.querySelector(".line .f2")?.innerText === "green"`)
	b.shot("build")
	b.press("Run again")
	b.says("#2 ")
	b.says("succeeded")
	b.press("Builds")
	b.says("#1")
	b.shot("builds")
	b.clean()
}
