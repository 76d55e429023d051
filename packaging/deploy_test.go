package packaging

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestExamplesNameWhatThePackageHas: the files of deploy/ are read as their formats say, and what they name of the package is
// in it.
func TestExamplesNameWhatThePackageHas(t *testing.T) {
	m, err := Contents(wholeRelease(t, "v1.2.3"), Deb, "amd64")
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layout
	has := func(path string) bool {
		return slices.ContainsFunc(m.Files, func(f File) bool { return f.Path == path }) || path == l.Vendor || path == l.Home
	}
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("..", "deploy", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	ours := regexp.MustCompile(`/(?:usr|etc|var|run)/[\w./-]*devops-?[aA]gent[\w./-]*`)
	elsewhere := []string{"/etc/apt/", "/run/secrets/"} // not of the package
	for name, least := range map[string]int{"docker/Dockerfile": 5, "kubernetes/devops-agent.yaml": 5, "cloud-init/user-data.yaml": 1} {
		found := 0
		for _, path := range ours.FindAllString(read(name), -1) {
			if slices.ContainsFunc(elsewhere, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
				continue
			}
			found++
			if dir := filepath.ToSlash(filepath.Dir(path)); !has(path) && (!strings.HasSuffix(dir, "/enroll.d") || !has(dir)) {
				t.Errorf("%s names %s, which is not in the package", name, path)
			}
		}
		if found < least {
			t.Errorf("%s names %d files of the package, not %d", name, found, least)
		}
	}

	steps := map[string]string{} // the last of each instruction
	for line := range strings.Lines(strings.ReplaceAll(read("docker/Dockerfile"), "\\\n", " ")) {
		if word, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && word != "#" {
			steps[word] = rest
		}
	}
	_, check, _ := strings.Cut(steps["HEALTHCHECK"], " CMD ")
	for name, text := range map[string]string{"ENTRYPOINT": steps["ENTRYPOINT"], "HEALTHCHECK": check} {
		var command []string
		if err := json.Unmarshal([]byte(text), &command); err != nil || len(command) == 0 || !has(command[0]) {
			t.Errorf("%s %s: %v", name, text, err)
		}
	}
	if steps["USER"] != l.Account || steps["WORKDIR"] != l.Home || steps["VOLUME"] != l.Home {
		t.Errorf("%v", steps)
	}

	type named struct {
		Name string `yaml:"name"`
		Path string `yaml:"mountPath"`
	}
	var set struct {
		Spec struct {
			Selector struct {
				MatchLabels map[string]string `yaml:"matchLabels"`
			} `yaml:"selector"`
			Template struct {
				Metadata struct {
					Labels map[string]string `yaml:"labels"`
				} `yaml:"metadata"`
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						WorkingDir string `yaml:"workingDir"`
						Lifecycle  struct {
							PreStop struct {
								Exec struct {
									Command []string `yaml:"command"`
								} `yaml:"exec"`
							} `yaml:"preStop"`
						} `yaml:"lifecycle"`
						Mounts []named `yaml:"volumeMounts"`
					} `yaml:"containers"`
					Volumes []named `yaml:"volumes"`
				} `yaml:"spec"`
			} `yaml:"template"`
			Claims []struct {
				Metadata named `yaml:"metadata"`
			} `yaml:"volumeClaimTemplates"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal([]byte(read("kubernetes/devops-agent.yaml")), &set); err != nil {
		t.Fatal(err)
	}
	pod := set.Spec.Template
	if len(pod.Spec.Containers) != 1 || len(set.Spec.Selector.MatchLabels) == 0 {
		t.Fatalf("%+v", set)
	}
	for key, value := range set.Spec.Selector.MatchLabels {
		if pod.Metadata.Labels[key] != value {
			t.Errorf("the set selects %s=%s, and its pods have %v", key, value, pod.Metadata.Labels)
		}
	}
	one := pod.Spec.Containers[0]
	stop := one.Lifecycle.PreStop.Exec.Command
	if one.WorkingDir != l.Home || pod.Spec.Grace <= 3600 || !slices.Contains(stop, "3600") || !slices.Contains(stop, "drain") {
		t.Errorf("in %s, %v before %d s", one.WorkingDir, stop, pod.Spec.Grace)
	}
	volumes := map[string]bool{} // whether it stays
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = false
	}
	for _, c := range set.Spec.Claims {
		volumes[c.Metadata.Name] = true
	}
	for _, mount := range one.Mounts {
		if stays, ok := volumes[mount.Name]; !ok || stays != (mount.Path == l.Home) {
			t.Errorf("at %s is the volume %s: there %v, stays %v", mount.Path, mount.Name, ok, stays)
		}
	}
	if len(one.Mounts) != len(volumes) {
		t.Errorf("%v of %v", one.Mounts, volumes)
	}

	text := read("cloud-init/user-data.yaml")
	var cloud struct {
		Files []struct {
			Path        string `yaml:"path"`
			Content     string `yaml:"content"`
			Permissions string `yaml:"permissions"`
		} `yaml:"write_files"`
		Commands [][]string `yaml:"runcmd"`
	}
	if err := yaml.Unmarshal([]byte(text), &cloud); err != nil || !strings.HasPrefix(text, "#cloud-config\n") {
		t.Fatal(err)
	}
	for _, f := range cloud.Files {
		if strings.Contains(f.Content, "token") && f.Permissions != "0600" {
			t.Errorf("%s has a token and the mode %s", f.Path, f.Permissions)
		}
	}
	if !slices.ContainsFunc(cloud.Commands, func(c []string) bool { return slices.Contains(c, m.Name) && slices.Contains(c, "install") }) {
		t.Errorf("nothing installs %s: %v", m.Name, cloud.Commands)
	}
}
