//go:build lab && linux

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// rowOf is an expression for the row with a text in it of the page's table with a label.
func rowOf(label, text string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("main table[aria-label='%s'] tbody tr")].find((n) => n.offsetParent !== null && n.innerText.includes(%q))`, label, text)
}

// lastAsked is the last question of the page's, all of which are answered with yes.
func (b *browser) lastAsked() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) == 0 {
		return ""
	}
	return b.asked[len(b.asked)-1]
}

// TestPageAccess: tokens are seen and taken back on the page: no machine enrols with one that was revoked there, and
// whoever is signed in with one is not any more. The audit log says who did it.
func TestPageAccess(t *testing.T) {
	t.Parallel()
	p := programs(t)
	c := lab.NewController(t, p)
	text, code := c.Run("", "enroll-token", "--uses", "5", "--note", "second rack", "--labels", "gpu")
	if code != 0 {
		t.Fatalf("no token: %s", text)
	}
	enrol := func() (string, error) {
		home := lab.NewHome(t, p, lab.HomeOptions{Worker: p.Worker, NoJar: true, JDK: "-", Gateway: c.URL})
		home.Remove(".agent.properties")
		command := exec.Command(home.Path("devopsAgent"), "enroll", "--gateway", c.URL)
		command.Stdin = strings.NewReader(text)
		out, err := command.CombinedOutput()
		return string(out), err
	}
	if out, err := enrol(); err != nil {
		t.Fatalf("enroll: %v\n%s", err, out)
	}
	b := newBrowser(t, c.URL, look{})
	b.signIn(operatorToken(t, c))
	b.press("Access")
	row := rowOf("Enrolment tokens", "second rack")
	b.until(row)
	for _, want := range []string{"gpu", "demo", "valid", "operator.token", "1 of 5"} {
		if got := value[string](b, row+".innerText"); !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	b.eval(row + `.querySelector("button").click()`)
	b.says("second rack is revoked.")
	b.says("No enrolment token is valid.")
	if got := b.lastAsked(); !strings.Contains(got, "second rack") {
		t.Errorf("asked: %q", got)
	}
	if at := value[string](b, `document.activeElement.innerText`); at != "Enrolment tokens" {
		t.Errorf("the focus is on %q", at)
	}
	if out, err := enrol(); err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("enroll with a revoked token: %v\n%s", err, out)
	}
	b.press("Ended in the last 30 days (1)")
	b.until(row + `.innerText.includes("revoked")`)

	b.do("name", chromedp.SetValue(`main input[placeholder=wall-screen]`, "kiosk"))
	b.press("Make it")
	b.says("It is shown only now")
	b.until(rowOf("Access tokens", "kiosk") + `.innerText.includes("read-only")`)
	b.shot("made")
	kiosk := value[string](b, `document.querySelector("main .command code").innerText`)
	reader := newBrowser(t, c.URL, look{width: 360})
	reader.signIn(kiosk)
	reader.says("You may look at everything and change nothing.")
	b.press("Hide it")
	b.until(`!document.documentElement.innerHTML.includes("` + kiosk + `")`)
	b.until(`!` + rowOf("Access tokens", "kiosk") + `.innerText.includes("not since")`)
	b.eval(rowOf("Access tokens", "kiosk") + `.querySelector("button").click()`)
	b.says("kiosk is revoked.")
	reader.until(`!!document.querySelector("form.door input")`)
	if out, _ := c.Run("", "token", "list"); !strings.Contains(out, "revoked") {
		t.Errorf("token list: %s", out)
	}

	b.until(rowOf("Audit log", "tokens.delete") + `.innerText.includes("ok")`)
	b.do("filter", chromedp.SendKeys(`main input[type=search]`, "TOKENS.create"))
	b.until(`[...document.querySelectorAll("main table[aria-label='Audit log'] tbody tr")].every((n) => n.innerText.includes("tokens.create"))`)
	b.says("2 of the last")
	b.shot("filter")
	b.do("no such action", chromedp.SendKeys(`main input[type=search]`, " nobody"))
	b.says("None of these matches.")
	b.visit("#/secrets")
	for i := range 120 {
		controllerCall[map[string]any](t, c, "PUT", fmt.Sprintf("/secrets/KEY%d", i%3), map[string]any{"value": "x"})
	}
	b.visit("#/access")
	b.says("100 of the last 100")
	b.press("Older")
	b.until(rowOf("Audit log", "session.create"))
	b.until(`[...document.querySelectorAll("main button")].find((n) => n.innerText === "Older").offsetParent === null`) // there is no more

	// The token that one is signed in with ends the session, and the page asks about that.
	own := controllerCall[struct{ Token string }](t, c, "POST", "/tokens", map[string]any{"name": "ann", "role": "operator"})
	b.press("Sign out")
	b.signIn(own.Token)
	b.visit("#/access")
	mine := rowOf("Access tokens", "you are signed in with it")
	b.until(mine)
	b.eval(mine + `.querySelector("button").click()`)
	b.until(`!!document.querySelector("form.door input")`)
	if got := b.lastAsked(); !strings.Contains(got, "You are signed in with the token ann") {
		t.Errorf("asked: %q", got)
	}
	b.clean()
	reader.clean()
}
