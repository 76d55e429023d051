package worker

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Limits of tasks and jobs (protocol §6.7, Appendix D).
const (
	longest         = 7 * 24 * time.Hour
	defaultJobLimit = 900 * time.Minute
)

// taskLimit reads the time limit of a task from its parameter additionalOptions: field absent, 100 minutes; null or
// unreadable JSON, 900; 0 or no parameter at all, seven days (protocol §6.7). Our controller may name seconds as well.
func taskLimit(options string, given bool) time.Duration {
	if !given || strings.TrimSpace(options) == "" {
		return longest
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(options), &fields) != nil {
		return defaultJobLimit
	}
	var seconds float64
	if json.Unmarshal(fields[wire.OptionTimeoutSeconds], &seconds) == nil && seconds > 0 && seconds < longest.Seconds() {
		return time.Duration(seconds * float64(time.Second))
	}
	raw, ok := fields["timeout"]
	if !ok {
		return 100 * time.Minute
	}
	minutes, err := strconv.ParseFloat(strings.Trim(string(raw), `" `), 64)
	switch {
	case err != nil || math.IsNaN(minutes):
		return defaultJobLimit
	case minutes <= 0 || minutes > longest.Minutes():
		return longest
	}
	return time.Duration(minutes * float64(time.Minute))
}

// jobLimit reads timeoutMills of BuildVariables (protocol §6.3).
func jobLimit(mills int64) time.Duration {
	switch {
	case mills <= 0:
		return defaultJobLimit
	case mills > longest.Milliseconds():
		return longest
	}
	return time.Duration(mills) * time.Millisecond
}

// pair is an entry of customEnv.
type pair struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

// customEnv reads the parameter of that name: a JSON list of key and value. What cannot be read is left out.
func customEnv(text string) []pair {
	var pairs []pair
	if json.Unmarshal([]byte(text), &pairs) != nil {
		return nil
	}
	return pairs
}

// text is a JSON value as a variable's value: a string as it is, everything else as JSON.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

// pause is the wait after the k-th WAIT in a row, from 0 (protocol §6.2).
func pause(k int) time.Duration {
	return min(time.Duration(max(1, k/5))*100*time.Millisecond, 8*time.Second)
}
