package metrics

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metric is one measurement at one time.
type Metric struct {
	Name   string
	Time   time.Time
	Tags   map[string]string
	Fields map[string]any // float64, int64, uint64, bool or string
}

// Mapped gives measurements the names of the ask generation's own collector (protocol §1.6.13): cpu becomes
// cpu_detail, diskio becomes io, and system is split into load (load1, load5, load15) and env (the rest of it).
// Fields and tags stay as they are.
func Mapped(list []Metric) []Metric {
	out := make([]Metric, 0, len(list)+1)
	for _, m := range list {
		switch m.Name {
		case "cpu":
			m.Name = "cpu_detail"
		case "diskio":
			m.Name = "io"
		case "system":
			load, env := m, m
			load.Name, load.Fields = "load", map[string]any{}
			env.Name, env.Fields = "env", map[string]any{}
			for name, val := range m.Fields {
				if strings.HasPrefix(name, "load") {
					load.Fields[name] = val
				} else {
					env.Fields[name] = val
				}
			}
			if len(load.Fields) > 0 {
				out = append(out, load)
			}
			if m = env; len(env.Fields) == 0 {
				continue
			}
		}
		out = append(out, m)
	}
	return out
}

// JSON encodes measurements as telegraf does: {"metrics":[{"name","timestamp","tags","fields"}]}, times in seconds
// since 1970 (protocol §1.6.13). Numbers that JSON cannot express and measurements without any field are left out.
func JSON(list []Metric) ([]byte, error) {
	type metric struct {
		Fields map[string]any    `json:"fields"`
		Name   string            `json:"name"`
		Tags   map[string]string `json:"tags"`
		Time   int64             `json:"timestamp"`
	}
	batch := struct {
		Metrics []metric `json:"metrics"`
	}{[]metric{}}
	for _, m := range list {
		fields := make(map[string]any, len(m.Fields))
		for name, val := range m.Fields {
			if finite(val) {
				fields[name] = val
			}
		}
		if len(fields) == 0 {
			continue
		}
		tags := m.Tags
		if tags == nil {
			tags = map[string]string{}
		}
		batch.Metrics = append(batch.Metrics, metric{Fields: fields, Name: m.Name, Tags: tags, Time: m.Time.Unix()})
	}
	return json.Marshal(batch)
}

func finite(val any) bool {
	f, ok := val.(float64)
	return !ok || !math.IsNaN(f) && !math.IsInf(f, 0)
}

// Lines encodes measurements in InfluxDB's line protocol, times in nanoseconds, tags and fields in alphabetical
// order. Unsigned numbers are written as signed ones, at most the largest of those, because InfluxDB 1 knows no
// others. What the format cannot express is left out: empty tags, infinite numbers, measurements without a field.
func Lines(list []Metric) []byte {
	var b []byte
	for _, m := range list {
		start := len(b)
		name := escape(m.Name, ", ")
		if name == "" {
			continue
		}
		b = append(b, name...)
		for _, key := range slices.Sorted(maps.Keys(m.Tags)) {
			k, v := escape(key, ",= "), escape(m.Tags[key], ",= ")
			if k != "" && v != "" {
				b = append(b, ',')
				b = append(b, k...)
				b = append(b, '=')
				b = append(b, v...)
			}
		}
		fields := 0
		for _, key := range slices.Sorted(maps.Keys(m.Fields)) {
			k := escape(key, ",= ")
			v, ok := fieldValue(m.Fields[key])
			if k == "" || !ok {
				continue
			}
			sep := byte(',')
			if fields == 0 {
				sep = ' '
			}
			b = append(b, sep)
			b = append(b, k...)
			b = append(b, '=')
			b = append(b, v...)
			fields++
		}
		if fields == 0 {
			b = b[:start]
			continue
		}
		b = append(b, ' ')
		b = strconv.AppendInt(b, m.Time.UnixNano(), 10)
		b = append(b, '\n')
	}
	return b
}

func fieldValue(val any) (string, bool) {
	switch v := val.(type) {
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), finite(v)
	case int64:
		return strconv.FormatInt(v, 10) + "i", true
	case uint64:
		return strconv.FormatUint(min(v, math.MaxInt64), 10) + "i", true
	case bool:
		return strconv.FormatBool(v), true
	case string:
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ", "\r", " ").Replace(v) + `"`, true
	}
	return "", false
}

// escape puts a backslash before each of the special characters. Line ends and NULs cannot be escaped and become
// blanks; a backslash at the end, or before a special character, would change the meaning of what follows and goes.
func escape(s, special string) string {
	var b strings.Builder
	pending := 0 // backslashes not yet written
	for _, r := range s {
		if r == '\n' || r == '\r' || r == 0 {
			r = ' '
		}
		if r == '\\' {
			pending++
			continue
		}
		if strings.ContainsRune(special, r) {
			b.WriteByte('\\')
		} else {
			b.WriteString(strings.Repeat(`\`, pending))
		}
		pending = 0
		b.WriteRune(r)
	}
	return b.String()
}
