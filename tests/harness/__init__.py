"""What the tests of real servers share: the servers, their clients, and an app that can be made sick."""
