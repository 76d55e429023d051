package host

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestJavaPath(t *testing.T) {
	for goos, want := range map[string]string{"linux": "j/bin/java", "darwin": "j/Contents/Home/bin/java", "windows": "j/bin/java.exe"} {
		if got := filepath.ToSlash(JavaPath("j", goos)); got != want {
			t.Errorf("JavaPath on %s = %s, want %s", goos, got, want)
		}
	}
}

func TestJDKLines(t *testing.T) {
	const jdk8 = "openjdk version \"1.8.0_352\"\nOpenJDK Runtime Environment (build 1.8.0_352-b1)\nOpenJDK 64-Bit Server VM (build 25.352-b1, mixed mode)"
	want8 := strings.Split(jdk8, "\n")
	for name, c := range map[string]struct {
		output string
		want   []string
	}{
		"JDK 8": {jdk8 + "\n", want8},
		"JDK 8 with notices and warnings": {"Picked up _JAVA_OPTIONS: -Xmx1g\r\nOpenJDK 64-Bit Server VM warning: Insufficient space\r\n" +
			strings.Join(want8, "\r\n") + "\r\n", want8},
		"a warning in the middle": {want8[0] + "\n" + want8[1] + "\nOpenJDK 64-Bit Server VM warning: x\n" + want8[2], want8},
		"JDK 17": {"openjdk 17.0.9 2023-10-17\nOpenJDK Runtime Environment Temurin-17.0.9+9 (build 17.0.9+9)\nOpenJDK 64-Bit Server VM Temurin-17.0.9+9 (build 17.0.9+9, mixed mode, sharing)",
			[]string{"openjdk 17.0.9 2023-10-17", "OpenJDK Runtime Environment Temurin-17.0.9+9 (build 17.0.9+9)",
				"OpenJDK 64-Bit Server VM Temurin-17.0.9+9 (build 17.0.9+9, mixed mode, sharing)"}},
		"a client machine": {"java version \"1.8.0\"\nJava(TM) SE Runtime Environment (build 1)\nJava HotSpot(TM) Client VM (build 2)",
			[]string{"java version \"1.8.0\"", "Java(TM) SE Runtime Environment (build 1)", ""}},
		"nothing": {"", []string{"", "", ""}},
	} {
		if got := jdkLines(c.output); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestWorkerVersions(t *testing.T) {
	for output, want := range map[string]string{
		"v1.2.3\n":          "v1.2.3",
		"v1.2.3-RELEASE":    "v1.2.3-RELEASE",
		"v1.2.3-SNAPSHOT\r": "v1.2.3-SNAPSHOT",
		"v1.2.3-beta.4":     "v1.2.3-beta.4",
		"Picked up _JAVA_OPTIONS: -Xmx1g\nJAVA_TOOL_OPTIONS\n  v2.0.1  \nv3.0.0": "v2.0.1",
		"v1.2.3.4-x":                         "", // made the original crash (weakness W-12)
		"v1.2":                               "",
		"1.2.3":                              "",
		"v1.2.3-alpha":                       "",
		"the version v1.2.3":                 "",
		"v1.2.3-beta." + repeat("9", 80):     "v1.2.3-beta." + repeat("9", 52),
		"":                                   "",
		"Error: Could not find or load main": "",
	} {
		if got := jarVersion(output); got != want {
			t.Errorf("jarVersion(%q) = %q, want %q", output, got, want)
		}
	}
	for output, want := range map[string]string{"v0.3.0-4-gdeadbee\n": "v0.3.0-4-gdeadbee", "0.1.0": "0.1.0", "usage: x": "", "panic:": ""} {
		if got := nativeVersion(output); got != want {
			t.Errorf("nativeVersion(%q) = %q, want %q", output, got, want)
		}
	}
}

func repeat(s string, n int) string { return strings.Repeat(s, n) }

func FuzzJDKLines(f *testing.F) {
	f.Add("openjdk version \"1.8.0_352\"\nOpenJDK Runtime Environment (build 1)\nOpenJDK 64-Bit Server VM (build 2)")
	f.Fuzz(func(t *testing.T, output string) {
		lines := jdkLines(output)
		if len(lines) != 3 {
			t.Fatalf("%d lines", len(lines))
		}
		for i, line := range lines {
			if strings.ContainsAny(line, "\r\n\x00") || len([]rune(line)) > 200 {
				t.Errorf("line %d: %q", i, line)
			}
			if i > 0 && line != "" && lines[i-1] == "" {
				t.Errorf("line %d without line %d", i, i-1)
			}
		}
		if lines[2] != "" && !reflect.DeepEqual(jdkLines(strings.Join(lines, "\n")), lines) {
			t.Errorf("not stable: %q", lines)
		}
	})
}

func FuzzWorkerVersion(f *testing.F) {
	f.Add("v1.2.3-beta.4\n")
	f.Fuzz(func(t *testing.T, output string) {
		for _, version := range []string{jarVersion(output), nativeVersion(output)} {
			if len(version) > 64 || strings.ContainsAny(version, " \r\n\"") {
				t.Errorf("%q", version)
			}
			if version != "" && !strings.Contains(output, version) {
				t.Errorf("%q is not in the output", version)
			}
		}
	})
}
