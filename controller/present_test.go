package controller

import (
	"encoding/json"
	"testing"
)

// slowly is what allPresent answers, by a decoder.
func slowly(data []byte, names []string) bool {
	var members map[string]json.RawMessage
	return json.Unmarshal(data, &members) == nil && present("", members, names) == nil
}

func TestMembersAreFound(t *testing.T) {
	names := []string{"a", "b.c"}
	for text, want := range map[string]bool{
		`{"a":1,"b":{"c":"x"}}`:                               true,
		" {\n\"a\" : [1,{\"a\":null}] , \"b\":{\"c\":false}}": true,
		`{"a":"b\"c\\","b":{"x":{"c":null},"c":0}}`:           true,
		`{"a":1,"b":{"c":null}}`:                              false,
		`{"a":null,"b":{"c":1}}`:                              false,
		`{"a":1,"a":1,"a":1}`:                                 false,
		`{"a":1,"a":null,"b":{"c":1}}`:                        false,
		`{"x":{"a":1},"b":{"c":1}}`:                           false,
		`{"a":1,"b":[{"c":1}]}`:                               false,
		`{"a":1,"b":"{\"c\":1}"}`:                             false,
		`[{"a":1}]`:                                           false, `{}`: false, ``: false, `{"a`: false, `{"a":1,"b":{"c":1`: false,
	} {
		if got := allPresent([]byte(text), names); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzMembers: where the fast look says that all is there, a decoder says so as well.
func FuzzMembers(f *testing.F) {
	for _, text := range []string{`{"a":1,"b":{"c":"x"}}`, `{"\u0061":null,"a":1,"b":{"c":1}}`, `{"a":"}","b":{"c":[",",{}]}}`, `{"a":1,"b":{"c":null}}`, `{"a":1,"a":null}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		names := []string{"a", "b.c"}
		if json.Valid(data) && allPresent(data, names) && !slowly(data, names) {
			t.Errorf("%q", data)
		}
	})
}
