package wire

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const ok = `{"status":0,"message":null,"data":"IMPORT_OK"}`

// TestEveryCallHasItsRequest decides statements 1, 2 and 4 for each call of the agent.
func TestEveryCallHasItsRequest(t *testing.T) {
	const (
		env  = "/ms/environment/api/buildAgent/agent/thirdPartyAgent"
		disp = "/ms/dispatch/api/buildAgent/agent/thirdPartyAgent"
	)
	for _, tc := range []struct {
		name, method, path, query string
		data                      string // of the answer
		call                      func(ctx context.Context, c *Client) error
	}{
		{"startup", "POST", env + "/startup", "", `"UN_IMPORT_OK"`, func(ctx context.Context, c *Client) error {
			s, err := c.Startup(ctx, Startup{})
			if err == nil && s != UnImportOK {
				return fmt.Errorf("status %q", s)
			}
			return err
		}},
		{"status", "GET", env + "/status", "", `"IMPORT_EXCEPTION"`, func(ctx context.Context, c *Client) error {
			s, err := c.Status(ctx)
			if err == nil && s != ImportException {
				return fmt.Errorf("status %q", s)
			}
			return err
		}},
		{"heartbeat", "POST", env + "/agents/newHeartbeat", "", `{"AgentStatus":"IMPORT_OK"}`, func(ctx context.Context, c *Client) error {
			_, err := c.Beat(ctx, Heartbeat{})
			return err
		}},
		{"check upgrade", "POST", disp + "/upgradeNew", "", `{"jdk":true}`, func(ctx context.Context, c *Client) error {
			u, err := c.CheckUpgrade(ctx, UpgradeCheck{})
			if err == nil && u != (UpgradeItem{JDK: true}) {
				return fmt.Errorf("item %+v", u)
			}
			return err
		}},
		{"finish upgrade", "DELETE", disp + "/upgrade", "success=false", `true`, func(ctx context.Context, c *Client) error {
			return c.FinishUpgrade(ctx, false)
		}},
		{"claim", "GET", disp + "/startup", "buildType=BINARY", `{"buildId":"b-1"}`, func(ctx context.Context, c *Client) error {
			b, waited, err := c.Claim(ctx, Binary, 0)
			if err == nil && (b == nil || b.ID != "b-1" || waited) {
				return fmt.Errorf("build %+v, waited %v", b, waited)
			}
			return err
		}},
		{"finish", "POST", disp + "/workerBuildFinish", "", `true`, func(ctx context.Context, c *Client) error { return c.Finish(ctx, Finish{}) }},
		{"pipeline", "GET", env + "/agents/pipelines", "", `{"type":"COMMAND","seqId":"7","command":"true"}`, func(ctx context.Context, c *Client) error {
			p, err := c.Pipeline(ctx)
			if err == nil && (p == nil || p.SeqID != "7") {
				return fmt.Errorf("pipeline %+v", p)
			}
			return err
		}},
		{"report pipeline", "PUT", env + "/agents/pipelines", "", `true`, func(ctx context.Context, c *Client) error {
			return c.ReportPipeline(ctx, PipelineReport{})
		}},
		{"debug", "GET", disp + "/docker/startupDebug", "", `{"debugId":9007199254740993}`, func(ctx context.Context, c *Client) error {
			d, err := c.Debug(ctx)
			if err == nil && (d == nil || d.DebugID != 1<<53+1) {
				return fmt.Errorf("debug %+v", d)
			}
			return err
		}},
		{"report debug", "POST", disp + "/docker/startupDebug", "", `true`, func(ctx context.Context, c *Client) error {
			return c.ReportDebug(ctx, DebugReport{})
		}},
		{"ask", "POST", disp + "/ask", "", `{}`, func(ctx context.Context, c *Client) error { _, err := c.Ask(ctx, Ask{}, 0); return err }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, c := serve(t, says(`{"status":0,"data":`+tc.data+`}`))
			if err := tc.call(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			got := b.requests()
			if len(got) != 1 {
				t.Fatalf("%d requests, want 1", len(got))
			}
			r := got[0]
			if r.method != tc.method || r.path != tc.path || r.query != tc.query {
				t.Errorf("%s %s?%s, want %s %s?%s", r.method, r.path, r.query, tc.method, tc.path, tc.query)
			}
			for name, want := range map[string]string{"X-DEVOPS-BUILD-TYPE": "AGENT", "X-DEVOPS-PROJECT-ID": "demo",
				"X-DEVOPS-AGENT-ID": "agt-1", "X-DEVOPS-AGENT-SECRET-KEY": "s3cret-of-a-test"} {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			contentType, hasType := r.header["Content-Type"]
			if sends := tc.method == "POST" || tc.method == "PUT"; sends {
				if len(contentType) != 1 || contentType[0] != "application/json; charset=utf-8" || !json.Valid([]byte(r.body)) {
					t.Errorf("content type %q, body %q", contentType, r.body)
				}
			} else if hasType || r.body != "" {
				t.Errorf("content type %q, body %q on %s", contentType, r.body, tc.method)
			}
			if p, has := r.header["Prefer"]; has {
				t.Errorf("Prefer: %q without being asked for", p)
			}
		})
	}
}

// TestGatewayAddress decides statement 3 and what cannot be a gateway.
func TestGatewayAddress(t *testing.T) {
	for given, want := range map[string]string{
		"ci.example.com":              "http://ci.example.com",
		"httpd.example.com":           "http://httpd.example.com",
		" ci.example.com:8080/ ":      "http://ci.example.com:8080",
		"http://ci.example.com":       "http://ci.example.com",
		"https://ci.example.com/bk//": "https://ci.example.com/bk",
		"HTTPS://ci.example.com":      "https://ci.example.com",
		"[::1]:80":                    "http://[::1]:80",
	} {
		if got := BaseURL(given); got != want {
			t.Errorf("BaseURL(%q) = %q, want %q", given, got, want)
		}
		if err := CheckGateway(given); err != nil {
			t.Errorf("CheckGateway(%q): %v", given, err)
		}
	}
	for _, given := range []string{"", "http://", "https://", "https:", "ci example.com", "ci.example.com?x=1", "http://ci/#top", "http://u:hunter2@ci",
		"ftp://ci.example.com", "http://ci.example.com:port", "http://[::1", "\x1b[2Jci"} {
		err := CheckGateway(given)
		if err == nil {
			t.Errorf("CheckGateway(%q): no error", given)
		} else if text := err.Error(); strings.ContainsAny(text, "\x1b\n") || strings.Contains(text, "hunter2") {
			t.Errorf("CheckGateway(%q): %q", given, text)
		}
	}
	_, c := serve(t, says(ok))
	c.Gateway = strings.TrimPrefix(c.Gateway, "http://") // no scheme
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWholeExchangeIsLimited decides statement 5: nothing comes, and a body that comes by drops.
func TestWholeExchangeIsLimited(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	drip := func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		_, _ = io.WriteString(w, `{"status":0,"data":"`)
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
				_, _ = io.WriteString(w, "x")
			}
		}
	}
	for name, answer := range map[string]http.HandlerFunc{"nothing": hang, "drops": drip} {
		t.Run(name, func(t *testing.T) {
			_, c := serve(t, answer)
			c.Timeout = 150 * time.Millisecond
			began := time.Now()
			_, err := c.Status(t.Context())
			var late *TimeoutError
			if !errors.As(err, &late) || late.Limit != c.Timeout {
				t.Fatalf("error %v, want a TimeoutError", err)
			}
			if took := time.Since(began); took < c.Timeout || took > 10*time.Second {
				t.Errorf("given up after %v", took)
			}
			if !strings.HasPrefix(err.Error(), "status: ") || strings.Contains(err.Error(), "context") {
				t.Errorf("error reads %q", err)
			}
			// What a server says after its 2xx to an upload does not matter, only that it ends.
			if err := c.Upload(t.Context(), "/m", "text/plain", nil); name == "nothing" && !errors.As(err, &late) {
				t.Errorf("upload: %v, want a TimeoutError", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		began := make(chan struct{})
		_, c := serve(t, func(_ http.ResponseWriter, r *http.Request) { close(began); <-r.Context().Done() })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-began; cancel() }()
		if _, err := c.Status(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want cancelled", err)
		}
	})
	t.Run("0 means none", func(t *testing.T) {
		_, c := serve(t, says(ok))
		c.Timeout = 0
		if _, _, err := c.Claim(t.Context(), All, 2*time.Second); err == nil {
			t.Error("a text is no build")
		} else if errors.As(err, new(*TimeoutError)) {
			t.Error(err)
		}
		if err := c.Upload(t.Context(), "/m", "text/plain", nil); err != nil {
			t.Error(err)
		}
	})
}

// TestEndlessBodiesAreRefused sends ten gigabytes, plain and as a gzip bomb, and counts what reading them cost.
func TestEndlessBodiesAreRefused(t *testing.T) {
	const ten = 10 << 30
	chunk := bytes.Repeat([]byte(" "), 1<<20)
	var member bytes.Buffer // 16 MB in 16 kB
	z := gzip.NewWriter(&member)
	for range 16 {
		_, _ = z.Write(chunk)
	}
	_ = z.Close()
	var sent atomic.Int64
	plain := func(w http.ResponseWriter, _ *http.Request) {
		for n := 0; n < ten; n += len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
			sent.Add(int64(len(chunk)))
		}
	}
	bomb := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		for n := 0; n < ten; n += 16 << 20 {
			if _, err := w.Write(member.Bytes()); err != nil {
				return
			}
		}
	}
	refused := func(code int, answer http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code); answer(w, r) }
	}
	bombed := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		refused(http.StatusBadGateway, bomb)(w, r)
	}
	for name, answer := range map[string]http.HandlerFunc{"plain": plain, "gzip": bomb, "plain 500": refused(500, plain), "gzip 502": bombed} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			_, c := serve(t, answer)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := c.Status(t.Context())
			runtime.ReadMemStats(&after)
			var body *BodyError
			var status *StatusError
			if !errors.As(err, &body) && !errors.As(err, &status) || len(err.Error()) > 500 {
				t.Errorf("error %v", err)
			}
			if cost := after.TotalAlloc - before.TotalAlloc; cost > 64<<20 {
				t.Errorf("reading it allocated %d MiB", cost>>20)
			}
			if n := sent.Load(); n > 256<<20 {
				t.Errorf("the server could send %d MiB", n>>20)
			}
		})
	}
	t.Run("upload", func(t *testing.T) {
		_, c := serve(t, plain)
		if err := c.Upload(t.Context(), "/m", "text/plain", []byte("x")); err != nil {
			t.Error(err)
		}
	})
	t.Run("largest that is taken", func(t *testing.T) {
		pad := strings.Repeat("x", maxAnswer-len(`{"status":0,"data":"IMPORT_OK","pad":""}`))
		_, c := serve(t, says(`{"status":0,"data":"IMPORT_OK","pad":"`+pad+`"}`))
		for most, taken := range map[int64]bool{0: true, maxAnswer: true, maxAnswer - 1: false, 1 << 10: false} {
			c.MaxBody = most
			if _, err := c.Status(t.Context()); (err == nil) != taken {
				t.Errorf("bound %d: %v", most, err)
			}
		}
	})
}

// TestRefusalsAreErrors decides statements 6 and 7 over the table of protocol §1.8.
func TestRefusalsAreErrors(t *testing.T) {
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"status":0,`)
	}
	closed := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	code := func(n int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n); _, _ = io.WriteString(w, body) }
	}
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<html><body>Sign in</body></html>")
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		status *StatusError // nil for another kind of error
		text   string       // in the error
		hint   string       // of its hint, a part
	}{
		"wrong secret": {code(401, `{"status":401,"message":"secret mismatch","data":null}`),
			&StatusError{HTTP: 401, Code: 401}, "status: server answered HTTP 401: secret mismatch", "enrol the machine again"},
		"no record":    {code(404, `{"status":404,"message":"none"}`), &StatusError{HTTP: 404, Code: 404}, "HTTP 404: none", ""},
		"business":     {code(400, `{"status":2105058,"message":"online"}`), &StatusError{HTTP: 400, Code: 2105058}, "HTTP 400 status 2105058: online", ""},
		"gateway":      {code(503, `{"status":503,"data":"","result":true,"message":"no service"}`), &StatusError{HTTP: 503, Code: 503}, "HTTP 503: no service", ""},
		"text status":  {code(403, `{"status":"403","message":"not you"}`), &StatusError{HTTP: 403}, "HTTP 403: not you", ""},
		"session code": {code(401, `{"errorCode":2101182,"message":"ended"}`), &StatusError{HTTP: 401, ErrorCode: 2101182}, "HTTP 401: ended", ""},
		"TLS, Go":      {code(400, "Client sent an HTTP request to an HTTPS server.\n"), &StatusError{HTTP: 400}, "HTTP 400", "https://"},
		"TLS, nginx":   {code(400, "<html><h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port</html>"), &StatusError{HTTP: 400}, "HTTP 400", "https://"},
		"bare 400":     {code(400, "no"), &StatusError{HTTP: 400}, "HTTP 400", ""},
		"proxy":        {code(407, "login"), &StatusError{HTTP: 407}, "HTTP 407", "proxy"},
		"bare 500":     {code(500, ""), &StatusError{HTTP: 500}, "HTTP 500", ""},
		"page 502":     {code(502, "<html>bad gateway</html>"), &StatusError{HTTP: 502}, "HTTP 502", ""},
		"not modified": {code(304, ""), &StatusError{HTTP: 304}, "HTTP 304", ""},
		"frequent":     {says(`{"status":1,"message":"request too frequently"}`), &StatusError{HTTP: 200, Code: 1}, "server answered status 1: request too frequently", ""},
		"control characters": {says(`{"status":1,"message":"\u001b]0;title\u0007 \u009b2Jgone\r\nsecond line"}`),
			&StatusError{HTTP: 200, Code: 1}, "status 1: ]0;title 2Jgone", ""},
		"message of a wrong type": {says(`{"status":1,"message":{"zh":"x"}}`), &StatusError{HTTP: 200, Code: 1}, "status 1", ""},
		"page":                    {page, nil, "unusable answer (text/html; charset=utf-8)", "wrong landun.gateway"},
		"empty":                   {says(""), nil, "unusable answer", ""},
		"no content":              {code(204, ""), nil, "unusable answer", ""},
		"no envelope":             {says(`{"data":"IMPORT_OK"}`), nil, "no status in it", ""},
		"status of a wrong type":  {says(`{"status":"0","data":"IMPORT_OK"}`), nil, "cannot unmarshal string", ""},
		"null":                    {says(`null`), nil, "no status in it", ""},
		"list":                    {says(`[]`), nil, "cannot unmarshal array", ""},
		"half":                    {half, nil, "unexpected EOF", ""},
		"closed":                  {closed, nil, "EOF", ""},
		"no data":                 {says(`{"status":0,"data":null}`), nil, "no agent status in it", ""},
		"data of a wrong type":    {says(`{"status":0,"data":{"a":1}}`), nil, "cannot unmarshal object", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := serve(t, tc.answer)
			s, err := c.Status(t.Context())
			if err == nil {
				t.Fatalf("status %q and no error", s)
			}
			var status *StatusError
			if isStatus := errors.As(err, &status); isStatus != (tc.status != nil) {
				t.Fatalf("error %T: %v", err, err)
			} else if isStatus && (status.HTTP != tc.status.HTTP || status.Code != tc.status.Code || status.ErrorCode != tc.status.ErrorCode) {
				t.Errorf("error %#v, want %#v", status, tc.status)
			}
			if !strings.Contains(err.Error(), tc.text) || strings.ContainsAny(err.Error(), "\r\n\x1b\u009b") {
				t.Errorf("error reads %q, want %q in it", err, tc.text)
			}
			var hinter interface{ Hint() string }
			hint := ""
			if errors.As(err, &hinter) {
				hint = hinter.Hint()
			}
			if (hint != "") != (tc.hint != "") || !strings.Contains(hint, tc.hint) {
				t.Errorf("hint %q, want %q in it", hint, tc.hint)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), string(c.Identity.Secret)) {
				t.Error("the secret is in the error")
			}
		})
	}
}

// TestAnswersAreReadTolerantly decides statements 8 and 9.
func TestAnswersAreReadTolerantly(t *testing.T) {
	for name, body := range map[string]string{
		"unknown members":         `{"status":0,"data":"IMPORT_OK","new":{"a":[1]},"Message":"x"}`,
		"letter case":             `{"STATUS":0,"Data":"IMPORT_OK","AgentStatus":"IMPORT_OK"}`,
		"errorCode of any type":   `{"status":0,"errorCode":"none","data":"IMPORT_OK"}`,
		"agentStatus of any type": `{"status":0,"agentStatus":7,"data":"IMPORT_OK"}`,
		"message of any type":     `{"status":0,"message":["x"],"data":"IMPORT_OK"}`,
	} {
		_, c := serve(t, says(body))
		if s, err := c.Status(t.Context()); s != ImportOK || err != nil {
			t.Errorf("%s: %q, %v", name, s, err)
		}
	}
	for name, call := range map[string]func(c *Client) (found bool, err error){
		"heartbeat": func(c *Client) (bool, error) { v, err := c.Beat(t.Context(), Heartbeat{}); return v != nil, err },
		"claim":     func(c *Client) (bool, error) { v, _, err := c.Claim(t.Context(), All, 0); return v != nil, err },
		"pipeline":  func(c *Client) (bool, error) { v, err := c.Pipeline(t.Context()); return v != nil, err },
		"debug":     func(c *Client) (bool, error) { v, err := c.Debug(t.Context()); return v != nil, err },
		"upgrade": func(c *Client) (bool, error) {
			v, err := c.CheckUpgrade(t.Context(), UpgradeCheck{})
			return v.Any(), err
		},
		"ask": func(c *Client) (bool, error) {
			v, err := c.Ask(t.Context(), Ask{}, 0)
			return err == nil && (v.Heartbeat != nil || v.Build != nil || v.Upgrade != nil || v.Pipeline != nil || v.Debug != nil || v.Errs != nil), err
		},
	} {
		for _, body := range []string{`{"status":0}`, `{"status":0,"data":null,"agentStatus":null}`, `{"status":0,"data": null ,"message":""}`,
			`{"status":0,"agentStatus":"DELETE","data":null}`} {
			_, c := serve(t, says(body))
			if found, err := call(c); found || err != nil {
				t.Errorf("%s of %s: found %v, %v", name, body, found, err)
			}
		}
	}
	_, c := serve(t, says(`{"status":0,"agentStatus":"DELETE","data":false}`)) // of a deleted record, protocol §1.8
	if item, err := c.CheckUpgrade(t.Context(), UpgradeCheck{}); item.Any() || err != nil {
		t.Errorf("check upgrade of a deleted agent: %+v, %v", item, err)
	}
}

// TestSpoiltMembersCostNothingElse: a count of a wrong type must not read as 0, which means "no limit".
func TestSpoiltMembersCostNothingElse(t *testing.T) {
	reply, err := DecodeHeartbeat([]byte(`{"AgentStatus":"IMPORT_OK","ParallelTaskCount":"four","dockerParallelTaskCount":3,
		"gateway":7,"fileGateway":"f.example.com","createMod":"yes","language":"ja_JP","masterVersion":[],
		"envs":{"A":"1","B":2,"C":null,"D":"4"},"props":{"keepLogsHours":"x","enablePipeline":1,"ignoreLocalIps":"10.0.0.1"}}`))
	if reply == nil || err == nil {
		t.Fatalf("reply %+v, error %v", reply, err)
	}
	for _, name := range []string{"parallelTaskCount", "gateway", "createMod", "masterVersion", `"B"`, "props.keepLogsHours", "props.enablePipeline"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error does not name %s: %v", name, err)
		}
	}
	if reply.ParallelTaskCount != nil || reply.Gateway != nil || reply.CreateMod != nil || reply.Props.KeepLogsHours != nil ||
		reply.Props.EnablePipeline != nil || reply.MasterVersion != "" {
		t.Errorf("spoilt members are set: %+v %+v", reply, reply.Props)
	}
	if *reply.DockerParallelCount != 3 || *reply.FileGateway != "f.example.com" || *reply.Language != "ja_JP" ||
		reply.AgentStatus != ImportOK || *reply.Props.IgnoreLocalIPs != "10.0.0.1" {
		t.Errorf("sound members are lost: %+v", reply)
	}
	if len(reply.Envs) != 2 || reply.Envs["A"] != "1" || reply.Envs["D"] != "4" {
		t.Errorf("envs = %v", reply.Envs)
	}
	for _, raw := range []string{`[]`, `"x"`, `7`, `{`} {
		if reply, err := DecodeHeartbeat([]byte(raw)); reply != nil || err == nil {
			t.Errorf("%s: %+v, %v", raw, reply, err)
		}
	}
	if reply, err := DecodeHeartbeat([]byte(`{"envs":null,"props":null,"parallelTaskCount":null}`)); err != nil || reply == nil ||
		reply.Envs != nil || reply.Props != nil || reply.ParallelTaskCount != nil {
		t.Errorf("nulls: %+v, %v", reply, err)
	}
	_, err = DecodeHeartbeat([]byte(`{"parallelTaskCount":` + strings.Repeat("9", 1<<20) + `}`))
	if err == nil || len(err.Error()) > 1000 {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
	parts, err := decodeAsk(Answer{Data: []byte(`{"heartbeat":7,"build":{"executeCount":"x"},"upgrade":{"jdk":true},"pipeline":[],"debug":null}`)})
	if err != nil || len(parts.Errs) != 3 || parts.Heartbeat != nil || parts.Build != nil || parts.Pipeline != nil || parts.Upgrade == nil || !parts.Upgrade.JDK {
		t.Errorf("parts %+v, %v", parts, err)
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "300": 5 * time.Minute, "301": 5 * time.Minute, "99999999999999999999": 5 * time.Minute,
		"-5": 0, "1.5": 0, "soon": 0, "Wed, 21 Oct 2015 07:28:00 GMT": 0, "Wed, 21 Oct 2099 07:28:00 GMT": 5 * time.Minute,
		"Wednesday, 21-Oct-99 07:28:00 GMT": 5 * time.Minute, // RFC 850: the century is guessed
	} {
		h := http.Header{}
		h.Set("Retry-After", value)
		got := retryAfter(h)
		if strings.Contains(value, "-Oct-99") && got == 0 {
			continue // 1999
		}
		if got != want {
			t.Errorf("Retry-After: %s: %v, want %v", value, got, want)
		}
	}
	h := http.Header{"Retry-After": {time.Now().Add(90 * time.Second).UTC().Format(http.TimeFormat)}}
	if got := retryAfter(h); got < 85*time.Second || got > 90*time.Second {
		t.Errorf("Retry-After in 90 s: %v", got)
	}
	for name, answer := range map[string]http.HandlerFunc{
		"429": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "9"); w.WriteHeader(429) },
		"200": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "9")
			_, _ = io.WriteString(w, `{"status":1}`)
		},
	} {
		_, c := serve(t, answer)
		_, err := c.Status(t.Context())
		var status *StatusError
		if !errors.As(err, &status) || status.RetryAfter != 9*time.Second {
			t.Errorf("%s: %#v", name, err)
		}
	}
	_, c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "9"); w.WriteHeader(503) })
	var status *StatusError
	if err := c.Upload(t.Context(), "/m", "text/plain", nil); !errors.As(err, &status) || status.RetryAfter != 9*time.Second {
		t.Errorf("upload: %v", err)
	}
}

// TestPreferWait: RFC 7240.
func TestPreferWait(t *testing.T) {
	for _, tc := range []struct {
		wait    time.Duration
		sent    string
		applied []string
		waited  bool
	}{
		{0, "", nil, false},
		{900 * time.Millisecond, "", nil, false},
		{Probe, "wait=1", nil, false},
		{55 * time.Second, "wait=55", []string{"wait=55"}, true},
		{30 * time.Second, "wait=30", []string{"WAIT"}, true},
		{30 * time.Second, "wait=30", []string{"respond-async", "return=minimal , wait = 20"}, true},
		{30 * time.Second, "wait=30", []string{"waiting=30, await", ""}, false},
	} {
		b, c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for _, v := range tc.applied {
				w.Header().Add("Preference-Applied", v)
			}
			_, _ = io.WriteString(w, `{"status":0}`)
		})
		parts, err := c.Ask(t.Context(), Ask{}, tc.wait)
		if err != nil {
			t.Fatal(err)
		}
		if parts.Waited != tc.waited {
			t.Errorf("%q: waited %v", tc.applied, parts.Waited)
		}
		if got := b.requests()[0].header.Get("Prefer"); got != tc.sent {
			t.Errorf("wait %v: Prefer %q, want %q", tc.wait, got, tc.sent)
		}
		if _, waited, err := c.Claim(t.Context(), All, tc.wait); waited != tc.waited || err != nil {
			t.Errorf("%q: claim waited %v, %v", tc.applied, waited, err)
		}
	}
}

// TestWaitLengthensTheLimit: an answer that is held on request is not late.
func TestWaitLengthensTheLimit(t *testing.T) {
	_, c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		hold := time.NewTimer(600 * time.Millisecond)
		defer hold.Stop()
		select {
		case <-hold.C:
			_, _ = io.WriteString(w, `{"status":0}`)
		case <-r.Context().Done():
		}
	})
	c.Timeout = 200 * time.Millisecond
	if _, _, err := c.Claim(t.Context(), All, 30*time.Second); err != nil {
		t.Errorf("held answer: %v", err)
	}
	if _, _, err := c.Claim(t.Context(), All, Probe); !errors.As(err, new(*TimeoutError)) {
		t.Errorf("a probe has the ordinary limit: %v", err)
	}
}

// TestSecretStaysOnItsHost: no other host ever sees the identity.
func TestSecretStaysOnItsHost(t *testing.T) {
	other, _ := serve(t, says(ok))
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	redirect := func(code int, to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/there" {
				_, _ = io.WriteString(w, ok)
				return
			}
			http.Redirect(w, r, to, code)
		}
	}
	for _, code := range []int{301, 302, 303, 307, 308} {
		_, c := serve(t, redirect(code, elsewhere))
		if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "redirect to another host, localhost") {
			t.Errorf("%d to another host: %v", code, err)
		}
		b, c := serve(t, redirect(code, "/there"))
		if s, err := c.Status(t.Context()); s != ImportOK || err != nil {
			t.Errorf("%d on the same host: %q, %v", code, s, err)
		} else if got := b.requests()[1].header.Get(HeaderSecret); got != string(c.Identity.Secret) {
			t.Errorf("%d on the same host lost the identity: %q", code, got)
		}
		_, err := c.Startup(t.Context(), Startup{HostName: "h"})
		last := b.requests()[len(b.requests())-1]
		if code >= 307 && (err != nil || last.method != "POST" || !strings.Contains(last.body, `"hostname":"h"`)) {
			t.Errorf("%d of a POST: %v, %s %s", code, err, last.method, last.body)
		}
		if code < 307 && (err == nil || !strings.Contains(err.Error(), "would turn POST into GET") || last.path == "/there") {
			t.Errorf("%d of a POST: %v, then %s %s", code, err, last.method, last.path)
		}
	}
	if got := other.requests(); len(got) != 0 {
		t.Errorf("another host was asked: %+v", got)
	}
	_, c := serve(t, redirect(302, "/again"))
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "more than five") {
		t.Errorf("a circle: %v", err)
	}
	_, c = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(302) })
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a redirect to nowhere is no error")
	}
	request := func(address string) *http.Request {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		return &http.Request{Method: "GET", URL: u}
	}
	if err := sameHost(request("https://CI.example.com/x"), []*http.Request{request("http://ci.example.com/")}); err != nil {
		t.Errorf("up to https, letter case: %v", err)
	}
	if err := sameHost(request("http://ci.example.com/x"), []*http.Request{request("https://ci.example.com/")}); err == nil {
		t.Error("down to http is followed")
	}
}

// TestTLS decides statement 10 at this level.
func TestTLS(t *testing.T) {
	start := func(cfg *tls.Config) *httptest.Server {
		s := httptest.NewUnstartedServer(says(ok))
		s.TLS = cfg
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	dial := func(s *httptest.Server, roots *x509.CertPool) error {
		c := client(t, s.URL)
		c.HTTP = NewHTTPClient(HTTPOptions{Roots: roots})
		t.Cleanup(c.HTTP.CloseIdleConnections)
		_, err := c.Status(t.Context())
		return err
	}
	modern := start(nil)
	known := x509.NewCertPool()
	known.AddCert(modern.Certificate())
	var unknown x509.UnknownAuthorityError
	if err := dial(modern, nil); !errors.As(err, &unknown) {
		t.Errorf("an unknown authority: %v", err)
	}
	if err := dial(modern, x509.NewCertPool()); !errors.As(err, &unknown) {
		t.Errorf("another authority: %v", err)
	}
	if err := dial(modern, known); err != nil {
		t.Errorf("the authority of .cert: %v", err)
	}
	for version, taken := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		old := start(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: version})
		pool := x509.NewCertPool()
		pool.AddCert(old.Certificate())
		if err := dial(old, pool); (err == nil) != taken {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// TestAServerThatTurnedTLSOn says so to whoever comes without, and hangs up while it is still being told things. An answer can get lost
// with that; of several calls one is understood.
func TestAServerThatTurnedTLSOn(t *testing.T) {
	s := httptest.NewUnstartedServer(says(ok))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	var err error
	for range 20 {
		_, err = client(t, "http://"+s.Listener.Addr().String()).Status(t.Context())
		var refused *StatusError
		if errors.As(err, &refused) && strings.Contains(refused.Hint(), "https://") {
			return
		}
	}
	t.Errorf("%v", err)
}

// TestOneConnection: whatever the answers, the same connection serves the next call.
func TestOneConnection(t *testing.T) {
	var n, connections atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch n.Add(1) % 4 {
		case 0:
			_, _ = io.WriteString(w, ok)
		case 1:
			w.WriteHeader(500)
			_, _ = io.WriteString(w, strings.Repeat("x", 100<<10))
		case 2:
			_, _ = io.WriteString(w, "<html>")
		case 3:
			w.WriteHeader(401)
			_, _ = io.WriteString(w, `{"status":401}`)
		}
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	c := client(t, s.URL)
	for range 20 {
		_, _ = c.Ask(t.Context(), Ask{}, 0)
		_, _ = c.Status(t.Context())
		_, _, _ = c.Claim(t.Context(), All, 0)
	}
	if n.Load() != 60 || connections.Load() != 1 {
		t.Errorf("%d calls over %d connections, want 60 over 1", n.Load(), connections.Load())
	}
}

// TestGzipIsAskedForAndRead: an answer may be compressed.
func TestGzipIsAskedForAndRead(t *testing.T) {
	b, c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, ok)
		_ = z.Close()
	})
	if s, err := c.Status(t.Context()); s != ImportOK || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if got := b.requests()[0].header.Get("Accept-Encoding"); got != "gzip" {
		t.Errorf("Accept-Encoding %q", got)
	}
}

// TestUpload: any 2xx is a success, and the body goes as it is.
func TestUpload(t *testing.T) {
	b, c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	if err := c.Upload(t.Context(), "/m", "text/plain", []byte("cpu x=1 2\n")); err != nil {
		t.Error(err)
	}
	r := b.requests()[0]
	if r.method != "POST" || r.path != "/m" || r.body != "cpu x=1 2\n" || r.header.Get("Content-Type") != "text/plain" || r.header.Get(HeaderAgent) != "agt-1" {
		t.Errorf("%+v", r)
	}
}

// TestHugeHeadersAreRefused: they are memory too.
func TestHugeHeadersAreRefused(t *testing.T) {
	_, c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 40 {
			w.Header().Set("X-"+strconv.Itoa(i), strings.Repeat("x", 4096))
		}
		_, _ = io.WriteString(w, ok)
	})
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("160 kB of headers are taken")
	}
}
