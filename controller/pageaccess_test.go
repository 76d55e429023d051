package controller

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestThePageListsTokensInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := inBubble(t, Options{})
		h := w.pageOf(w.server.Token())
		var ids []string
		for i := range 5 {
			time.Sleep(time.Second)
			text, made, err := w.server.AddEnrolToken(NewEnrolToken{Note: fmt.Sprintf("rack %d", i), Uses: 2, Expires: 60}, "ann")
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, made.ID)
			w.token(NewAccessToken{Name: fmt.Sprintf("screen-%d", i), Expires: 90})
			if i < 2 {
				if _, _, err := w.server.enrol(string(text), "linux", ""); err != nil {
					t.Fatal(err)
				}
			}
		}
		look := func(query string) (enrol pageTokens[EnrolTokenInfo], access pageTokens[AccessToken]) {
			t.Helper()
			for path, to := range map[string]any{"/page/enroll-tokens": &enrol, "/page/tokens": &access} {
				r := w.call("GET", path+query, h, nil)
				if err := json.Unmarshal(r.body, to); err != nil || r.code != 200 || strings.Contains(string(r.body), "null") {
					t.Fatalf("%s%s: %d %s", path, query, r.code, r.body)
				}
			}
			return enrol, access
		}
		enrol, access := look("")
		if len(enrol.Valid) != 5 || enrol.ValidCount != 5 || enrol.EndedCount != 0 || enrol.Valid[0].ID != ids[4] || enrol.Valid[4].Used != 1 || enrol.Valid[4].CreatedBy != "ann" {
			t.Errorf("enrolment tokens: %+v", enrol)
		}
		if len(access.Valid) != 5 || access.Valid[0].Name != "screen-4" || access.EndedCount != 0 {
			t.Errorf("access tokens: %+v", access)
		}
		if r := w.call("DELETE", "/page/api/enroll-tokens/"+ids[4], h, nil); r.code != 200 {
			t.Fatalf("revoke: %d %s", r.code, r.body)
		}
		if r := w.call("DELETE", "/page/api/tokens/screen-4", h, nil); r.code != 200 {
			t.Fatalf("revoke: %d %s", r.code, r.body)
		}
		enrol, access = look("")
		if enrol.ValidCount != 4 || len(enrol.Ended) != 0 || enrol.EndedCount != 1 || access.ValidCount != 4 || len(access.Ended) != 0 || access.EndedCount != 1 {
			t.Errorf("after revoking one of each: %+v %+v", enrol, access)
		}
		enrol, access = look("?valid=2&ended=1")
		if len(enrol.Valid) != 2 || enrol.ValidCount != 4 || len(enrol.Ended) != 1 || enrol.Ended[0].State != TokenRevoked || len(access.Valid) != 2 || len(access.Ended) != 1 || access.Ended[0].Name != "screen-4" {
			t.Errorf("parts: %+v %+v", enrol, access)
		}
		time.Sleep(time.Minute)
		enrol, access = look("?ended=3")
		if enrol.ValidCount != 0 || enrol.EndedCount != 5 || len(enrol.Ended) != 3 || enrol.Ended[1].State != TokenExpired || access.ValidCount != 4 {
			t.Errorf("after a minute: %+v %+v", enrol, access)
		}
		for _, query := range []string{"?valid=x", "?ended=-1"} {
			if r := w.call("GET", "/page/tokens"+query, h, nil); r.code != 400 {
				t.Errorf("%s: %d", query, r.code)
			}
		}
		for _, path := range []string{"/page/tokens", "/page/enroll-tokens"} {
			if r := w.call("GET", path, http.Header{}, nil); r.code != 401 {
				t.Errorf("%s for a stranger: %d", path, r.code)
			}
		}
	})
}
