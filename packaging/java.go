package packaging

// javaName is the package that brings a Java runtime along.
const javaName = name + "-java"

// Java is the manifest of a package without files, which depends on the agent and on a Java runtime: BK-CI's own worker needs one.
// There is one for deb and rpm; ok is false for other formats.
func Java(r Release, f Format) (_ Manifest, ok bool, err error) {
	runtimes := map[Format]string{
		Deb: "default-jre-headless | java11-runtime-headless | java8-runtime-headless | java-runtime-headless",
		RPM: "java-headless",
	}
	jre, ok := runtimes[f]
	if !ok {
		return Manifest{}, false, nil
	}
	m, err := product(r, "linux", All)
	if err != nil {
		return Manifest{}, false, err
	}
	m.Name = javaName
	m.Summary = "Java runtime for the build agent of BlueKing CI"
	m.Description = "An empty package that depends on the agent and on a Java runtime, which the\nworker of BK-CI needs."
	m.Relations.Depends = []string{name, jre}
	if m.Changes, err = changes(r); err != nil {
		return Manifest{}, false, err
	}
	t := tree{&m, "root"}
	doc := "/usr/share/doc/" + m.Name
	own, err := ownLicence(r)
	if err != nil {
		return Manifest{}, false, err
	}
	if f == Deb {
		t.dir(doc)
		log, err := squeeze([]byte(debChangelog(m)))
		if err != nil {
			return Manifest{}, false, err
		}
		t.data(doc+"/changelog.gz", log)
		t.data(doc+"/copyright", []byte(debCopyright(m, own, nil)))
	} else {
		t.dir(rpmLicences + m.Name)
		t.data(rpmLicences+m.Name+"/LICENSE", []byte(own))
	}
	sortFiles(m.Files)
	return m, true, m.check()
}
