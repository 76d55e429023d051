package controller

import "net/http"

// act makes the handler of a call that brings a JSON object: read it strictly, do what it asks for, answer. An empty
// body leaves the zero value.
func act[In, Out any](do func(r *http.Request, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if apiRead(w, r, &in) {
			out, err := do(r, in)
			reply(w, out, err)
		}
	}
}

// refusalBody is what an error is answered with: its text, and what to do about it when somebody in its chain knows.
func refusalBody(err error) map[string]string {
	body := map[string]string{"error": err.Error()}
	if hint := hintOf(err); hint != "" {
		body["hint"] = hint
	}
	return body
}

// hintOf walks an error's chain, joined errors included, to the first that says what to do. One without a hint for what
// happened does not hide those below it.
func hintOf(err error) string {
	for err != nil {
		if h, ok := err.(interface{ Hint() string }); ok {
			if hint := h.Hint(); hint != "" {
				return hint
			}
		}
		switch inner := err.(type) {
		case interface{ Unwrap() error }:
			err = inner.Unwrap()
		case interface{ Unwrap() []error }:
			for _, one := range inner.Unwrap() {
				if hint := hintOf(one); hint != "" {
					return hint
				}
			}
			return ""
		default:
			return ""
		}
	}
	return ""
}
