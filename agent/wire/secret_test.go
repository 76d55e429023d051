package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

const hidden = "hunter2-of-the-agent"

// holders are the messages that hold secrets, as values and behind pointers.
func holders() map[string]any {
	id := Identity{Project: "p", Agent: "a", Secret: hidden}
	b := Build{ID: "b-1", Docker: &DockerBuild{Secret: hidden, Credential: &Credential{Password: hidden}}}
	d := Debug{Build: "b-1", Credential: &Credential{Password: hidden}}
	return map[string]any{"secret": Secret(hidden), "identity": id, "identity pointer": &id, "build": b, "build pointer": &b,
		"docker": *b.Docker, "credential": *d.Credential, "debug": d, "finish": Finish{Build: b}, "finish pointer": &Finish{Build: b},
		"list": []Secret{hidden}, "map": map[string]Secret{"k": hidden}, "client": Client{Identity: id}, "parts": Parts{Build: &b, Debug: &d}}
}

func TestSecretsDoNotPrintThemselves(t *testing.T) {
	for name, v := range holders() {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%t", "%e", "%10.3s", "%-40v", "% x", "%#x", "%#q"} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, hidden) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", hidden)) {
				t.Errorf("%s in %s: %s", name, verb, text)
			}
		}
		if text := fmt.Sprint(v) + fmt.Sprintln(v); strings.Contains(text, hidden) {
			t.Errorf("%s in Sprint: %s", name, text)
		}
		if text := fmt.Errorf("x: %w", errors.New(fmt.Sprint(v))).Error(); strings.Contains(text, hidden) {
			t.Errorf("%s in an error: %s", name, text)
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		if strings.Contains(out.String(), hidden) {
			t.Errorf("%s in slog's text: %s", name, out.String())
		}
	}
	if got := fmt.Sprintf("%s|%v|%#v|%x", Secret(hidden), Secret(hidden), Secret(hidden), Secret(hidden)); got != "(secret)|(secret)|(secret)|(secret)" {
		t.Error(got)
	}
}

// TestSecretsDoNotEnterAJSONLog: slog's JSON handler marshals, and marshalling writes the real value, so what is
// worth logging says itself what of it.
func TestSecretsDoNotEnterAJSONLog(t *testing.T) {
	for _, name := range []string{"secret", "identity", "identity pointer", "build", "build pointer", "debug", "finish", "finish pointer"} {
		v := holders()[name]
		var out bytes.Buffer
		log := slog.New(slog.NewJSONHandler(&out, nil))
		log.Info("x", "v", v)
		log.With("v", v).WithGroup("g").LogAttrs(context.Background(), slog.LevelInfo, "x", slog.Group("h", slog.Any("v", v)))
		if strings.Contains(out.String(), hidden) || !json.Valid(bytes.Split(out.Bytes(), []byte("\n"))[0]) {
			t.Errorf("%s: %s", name, out.String())
		}
	}
}

// TestSecretGoesOverTheWire: the deliberate ways out.
func TestSecretGoesOverTheWire(t *testing.T) {
	data, err := json.Marshal(Credential{Password: hidden})
	if err != nil || !strings.Contains(string(data), hidden) {
		t.Errorf("%s, %v", data, err)
	}
	var c Credential
	if err := json.Unmarshal(data, &c); err != nil || string(c.Password) != hidden {
		t.Errorf("%q, %v", string(c.Password), err)
	}
}

// TestSecretIsInNoError: a value that is no header value, a host that is none, a proxy that is down.
func TestSecretIsInNoError(t *testing.T) {
	for name, c := range map[string]*Client{
		"header":  {Gateway: "127.0.0.1:1", Identity: Identity{Project: "p", Agent: "a", Secret: hidden + "\n"}, HTTP: NewHTTPClient(HTTPOptions{})},
		"refused": {Gateway: "127.0.0.1:1", Identity: Identity{Project: "p", Agent: "a", Secret: hidden}, HTTP: NewHTTPClient(HTTPOptions{})},
		"address": {Gateway: "http://%zz", Identity: Identity{Project: "p", Agent: "a", Secret: hidden}, HTTP: NewHTTPClient(HTTPOptions{})},
	} {
		_, err := c.Status(t.Context())
		if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), hidden) {
			t.Errorf("%s: %v", name, err)
		}
		c.HTTP.CloseIdleConnections()
	}
}
