package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// readable fails unless an error is one bounded, printable line.
func readable(t *testing.T, err error, lines int) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	if len(text) > 8000 || !utf8.ValidString(text) || strings.Count(text, "\n") >= lines ||
		strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), unicode.IsControl) {
		t.Errorf("error reads %.300q (%d bytes)", text, len(text))
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add(200, []byte(`{"status":0,"message":null,"data":"IMPORT_OK","agentStatus":"IMPORT_OK"}`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		answer, err := decodeEnvelope("op", code, http.Header{}, body)
		readable(t, err, 1)
		var status *StatusError
		refused := errors.As(err, &status)
		if (code < 200 || code > 299) && !refused {
			t.Errorf("HTTP %d: %v", code, err)
		}
		if err == nil {
			var env struct{ Status json.Number }
			if !json.Valid(body) || json.Unmarshal(body, &env) != nil || env.Status != "0" {
				t.Errorf("taken: %q", body)
			}
			if len(answer.Data) > 0 && !json.Valid(answer.Data) {
				t.Errorf("data %q", answer.Data)
			}
		}
		if refused && (len(status.Body) > 2048 || status.HTTP != code) {
			t.Errorf("%d bytes of body, HTTP %d", len(status.Body), status.HTTP)
		}
	})
}

func FuzzHeartbeatReply(f *testing.F) {
	f.Add([]byte(`{"agentStatus":"IMPORT_OK","parallelTaskCount":4,"envs":{"A":"1"},"props":{"keepLogsHours":96}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		reply, err := DecodeHeartbeat(data)
		readable(t, err, 20)
		var strict HeartbeatReply
		if json.Unmarshal(data, &strict) != nil {
			if err == nil && len(data) > 0 {
				t.Errorf("%q: no error", data)
			}
			return
		}
		// What encoding/json takes whole, we take alike; null variables apart, which set nothing.
		if reply == nil || err != nil {
			if len(data) > 0 && strings.TrimSpace(string(data)) != "null" {
				t.Errorf("%q: %+v, %v", data, reply, err)
			}
			return
		}
		for name, value := range strict.Envs {
			if _, has := reply.Envs[name]; !has && value == "" {
				delete(strict.Envs, name)
			}
		}
		if strings.Contains(strings.ToLower(string(data)), `"envs"`) && len(strict.Envs) == len(reply.Envs) && len(reply.Envs) == 0 {
			strict.Envs, reply.Envs = nil, nil
		}
		if !duplicates(data) && !reflect.DeepEqual(&strict, reply) {
			t.Errorf("%q: %+v, want %+v", data, reply, &strict)
		}
	})
}

// duplicates reports whether some member name occurs twice, in any letter case: encoding/json then merges, we
// take the last.
func duplicates(data []byte) bool {
	var object func(d *json.Decoder) bool
	object = func(d *json.Decoder) bool {
		token, err := d.Token()
		if err != nil {
			return false
		}
		found := false
		switch token {
		case json.Delim('{'):
			names := []string{}
			for d.More() {
				name, _ := d.Token()
				text, _ := name.(string)
				for _, n := range names {
					found = found || strings.EqualFold(n, text)
				}
				names = append(names, text)
				found = object(d) || found
			}
			_, _ = d.Token()
		case json.Delim('['):
			for d.More() {
				found = object(d) || found
			}
			_, _ = d.Token()
		}
		return found
	}
	return object(json.NewDecoder(strings.NewReader(string(data))))
}

func FuzzAskParts(f *testing.F) {
	f.Add([]byte(`{"heartbeat":{},"build":{"buildId":"b-1"},"upgrade":{"agent":true},"pipeline":{"seqId":"1"},"debug":{"debugId":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		parts, err := decodeAsk(Answer{Data: data})
		readable(t, err, 1)
		if (parts == nil) == (err == nil) {
			t.Fatalf("%q: %+v, %v", data, parts, err)
		}
		if parts != nil {
			if len(parts.Errs) > 5 {
				t.Errorf("%d errors of five parts", len(parts.Errs))
			}
			for _, err := range parts.Errs {
				readable(t, err, 20)
			}
		}
	})
}

func FuzzBuild(f *testing.F) {
	f.Add([]byte(`{"projectId":"demo","buildId":"b-1","vmSeqId":"1","workspace":"","pipelineId":"p-1","dockerBuildInfo":null,"executeCount":1,"containerHashId":"c-1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		build, err := DecodeBuild(data)
		readable(t, err, 1)
		if build == nil {
			return
		}
		if err != nil {
			t.Errorf("%q: both a build and %v", data, err)
		}
		// It is passed on twice: to the worker, and back in the report.
		echo, err := json.Marshal(build)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeBuild(echo)
		if err != nil {
			t.Fatalf("%q: %v", echo, err)
		}
		if twice, err := json.Marshal(again); err != nil || !bytes.Equal(echo, twice) {
			t.Errorf("%q became %q: %v", echo, twice, err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("7")
	f.Fuzz(func(t *testing.T, value string) {
		if got := retryAfter(http.Header{"Retry-After": {value}}); got < 0 || got > 5*time.Minute {
			t.Errorf("%q: %v", value, got)
		}
		_ = waited(http.Header{"Preference-Applied": {value}})
	})
}
