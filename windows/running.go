package windows

// Where a service of ours says that it was started, and not stopped by anybody since: for the installer, which leaves it as it
// is. It is below the service's own key, and goes with it.
const (
	RunningValue = "Running" // REG_DWORD 1; not there when the service was stopped

	parameters = `\Parameters`
)

// RunningKey is the key of a service's RunningValue below HKEY_LOCAL_MACHINE.
func RunningKey(name string) string { return servicesKey + name + parameters }
