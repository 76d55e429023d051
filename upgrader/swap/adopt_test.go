package swap

import "testing"

func TestWhatIsAboutTheContentIsNotCarriedOver(t *testing.T) {
	for name, want := range map[string]bool{
		"security.selinux": true, "security.capability": true, "user.note": true, "system.posix_acl_access": true,
		"com.apple.metadata:kMDItemWhereFroms": true, "org.example.note": true,
		"security.ima": false, "security.evm": false, "trusted.overlay.opaque": false, "system.posix_acl_default": false,
		"btrfs.compression": false, "com.apple.ResourceFork": false, "com.apple.decmpfs": false,
		"com.apple.cs.CodeSignature": false, "": false,
	} {
		if got := carried(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}
