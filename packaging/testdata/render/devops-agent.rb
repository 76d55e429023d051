cask "devops-agent" do
  version "1.2.3"
  sha256 "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"

  url "https://packages.example.org/v1.2.3/devops-agent-1.2.3.pkg"
  name "devops-agent"
  desc "Build agent of BlueKing CI (BK-CI)"
  homepage "https://github.com/devops-agent/devops-agent"

  depends_on macos: ">= :monterey"

  pkg "devops-agent-1.2.3.pkg"

  uninstall launchctl: "org.devops-agent.agent",
            script:    {
              executable: "/usr/local/libexec/devops-agent/uninstall",
              sudo:       true,
            },
            pkgutil:   "org.devops-agent.pkg"

  zap trash: [
    "/usr/local/etc/devops-agent",
    "/usr/local/var/devops-agent",
  ]

  caveats <<~EOS
    Make this machine an agent of a server:
      sudo devopsAgent enroll --gateway URL --token-file FILE
  EOS
end
