//go:build lab && linux

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

// TestPageArtifacts: the page of a build lists what it has saved, a link downloads it byte for byte, and what was removed
// is not offered any more; on a telephone and on a large screen, in both languages.
func TestPageArtifacts(t *testing.T) {
	t.Parallel()
	source := ""
	if path := os.Getenv("LAB_AXE"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		source = string(data)
	}
	c := lab.NewController(t, programs(t))
	enrolled(t, c)
	id := c.Submit("name: app\nsteps: [{script: \"echo hello >x; head -c 200000 /dev/urandom >y\"}]\nartifacts:\n  - {name: app-linux-amd64, paths: [x, y], keep: 7d}\n  - {name: old, paths: [x]}\n")
	if b := c.Over(time.Minute, id); b.State != "succeeded" {
		t.Fatalf("%+v", b)
	}
	if _, code := c.Run("", "artifact", "remove", "1", "old"); code != 0 {
		t.Fatal("not removed")
	}
	want := artifactsOf(t, c, "1")[0]
	for i, how := range []look{{width: 360, language: "zh-CN", dark: true}, {width: 1440, language: "en-US"}} {
		b := newBrowser(t, c.URL, how)
		b.signIn(operatorToken(t, c))
		b.visit("#/builds/1")
		b.until(`!!document.querySelector("a[href$='/artifacts/app-linux-amd64']")`)
		where := fmt.Sprintf("the page of a build at %d", how.width)
		b.fits(where)
		b.axe(where, source)
		b.shot(fmt.Sprint(i))
		if n := value[int](b, `document.querySelectorAll("a[href*='/artifacts/']").length`); n != 1 {
			t.Errorf("%d links: what was removed is offered", n)
		}
		b.says(want.SHA256)
		got := value[string](b, `fetch(document.querySelector("a[href$='/artifacts/app-linux-amd64']").href).then(async (r) => r.headers.get("Content-Disposition") + " " +
			[...new Uint8Array(await crypto.subtle.digest("SHA-256", await r.arrayBuffer()))].map((n) => n.toString(16).padStart(2, "0")).join(""))`)
		if got != "attachment; filename=app-1-app-linux-amd64.tar.gz "+want.SHA256 {
			t.Errorf("downloaded: %s, not %s", got, want.SHA256)
		}
		b.clean()
	}
}
