package worker

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// maxDetail bounds the JSON of a progress report, in bytes (protocol §6.7).
const maxDetail = 32 << 10

// The commands that a script gives by printing a line (protocol §6.7).
const (
	setVariable = "::set-variable"
	setOutput   = "::set-output"
	setRemark   = "::set-remark"
	setError    = "::set-error"
	setGate     = "::set-gate-value"
	setProgress = "::set-progress-rate"
)

// command is one such line.
type command struct {
	name   string
	key    string         // of set-variable, set-output, set-gate-value
	value  string         // of all but set-progress-rate
	code   int            // of set-error
	rate   float64        // of set-progress-rate, 0..1
	detail map[string]any // of set-progress-rate, instead of the rate
}

// parseCommand reads a line of output. Anything that is not exactly a command is just output.
func parseCommand(line string) (command, bool) {
	quoted := strings.HasPrefix(line, `"`)
	if quoted {
		line = line[1:]
	}
	if !strings.HasPrefix(line, "::set-") {
		return command{}, false
	}
	if quoted {
		line = strings.TrimSuffix(line, `"`)
	}
	name, rest, ok := strings.Cut(line, " ")
	if !ok {
		return command{}, false
	}
	c := command{name: name}
	rest = strings.TrimLeft(rest, " \t")
	switch name {
	case setVariable, setOutput, setGate:
		pair, ok := strings.CutPrefix(rest, "name=")
		if !ok {
			return command{}, false
		}
		c.key, c.value, ok = strings.Cut(pair, "::")
		c.key = strings.TrimSpace(c.key)
		return c, ok && c.key != "" && len(c.key) <= maxKey
	case setRemark:
		c.value = rest
		return c, rest != ""
	case setError:
		code, ok := strings.CutPrefix(rest, "error_code=")
		if !ok {
			return command{}, false
		}
		code, c.value, ok = strings.Cut(code, ",error_message=")
		code = strings.TrimSpace(code)
		n, err := strconv.Atoi(code)
		c.code = n
		return c, ok && err == nil && len(code) == 6 && code[0] == '8'
	case setProgress:
		return c, c.progress(strings.TrimSpace(rest))
	}
	return command{}, false
}

// progress reads a number in 0..1, kept to four digits, or a JSON object.
func (c *command) progress(text string) bool {
	if strings.HasPrefix(text, "{") {
		return len(text) <= maxDetail && json.Unmarshal([]byte(text), &c.detail) == nil
	}
	rate, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(rate) || rate < 0 || rate > 1 {
		return false
	}
	c.rate = math.Round(rate*10_000) / 10_000
	return true
}
