package packaging

import "testing"

func TestVersionsOfFormats(t *testing.T) {
	for text, want := range map[string]string{
		"v1.2.4": "1.2.4", "1.2.4": "1.2.4", "v1.2.4-dev.3": "1.2.4~dev.3", "v0.0.0-dev.1200": "0.0.0~dev.1200", "v1.3.0-rc.1": "1.3.0~rc.1",
		"v1.3.0-snapshot.7": "1.3.0~snapshot.7",
	} {
		v, err := parseVersion(text)
		if err != nil || v.tilde() != want {
			t.Errorf("%s: %s, %v; want %s", text, v.tilde(), err, want)
		}
	}
	for _, bad := range []string{"", "v", "1.2", "v1.2.3.4", "v1.2.3-", "v1.2.3-a b", "v01.2.3", "v1.2.3~x", "v1.2.3-dev-1", "v1.2.3\n", "v9999999999.0.0"} {
		if _, err := parseVersion(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
